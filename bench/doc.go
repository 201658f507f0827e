// Package bench measures replfs against the bare store in one run, workload
// by workload and in turns, so that the ratios mean something on a noisy
// machine. `make bench` runs it; the README quotes it.
package bench
