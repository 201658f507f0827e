// Package lab builds small replfs clusters on one machine and runs real
// applications on them, for end-to-end tests and for the demo.
//
// It starts the replfs binary as an administrator would, in network namespaces
// of their own with mutual TLS or on the loopback interface without; it cuts
// and heals the network between nodes; and it runs PostgreSQL, Redis and git
// under loads that remember every write that was acknowledged, so that a test
// can prove that none was lost.
//
// Nothing outlives the process that uses the package, however that ends:
// children carry a parent-death signal, applications live in PID and IPC
// namespaces that end with their first process, network namespaces have no
// name, and a janitor process unmounts and removes the working directory.
//
// The package needs root.
package lab
