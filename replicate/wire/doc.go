// Package wire is the generated protocol between nodes.
package wire
