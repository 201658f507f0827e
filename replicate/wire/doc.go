// Package wire is the protocol between nodes: what protoc generates from
// replicate.proto, and a codec that moves the records of a batch without
// copying them more than once.
package wire
