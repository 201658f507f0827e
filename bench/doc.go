// Package bench measures a mount of replfs against the bare store and against
// other FUSE file systems: every target in the same run, workload by workload
// and in turns, so that the ratios mean something on a noisy machine. `replfs
// bench fs` runs it.
package bench
