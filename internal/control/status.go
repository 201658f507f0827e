// Package control is the local interface of a running node: HTTP with JSON
// bodies over a root-only unix socket. The commands of replfs use it; so may
// scripts (curl --unix-socket).
package control

import "time"

// LSNs are the positions a stream has reached. On a primary they are those of
// one standby; on a standby its own.
type LSNs struct {
	// Appended is the last record in the primary's log, as far as this node knows.
	Appended uint64 `json:"appended"`
	// Sent is the last record handed to the standby's stream.
	Sent uint64 `json:"sent"`
	// Received is the last record in the standby's own log.
	Received uint64 `json:"received"`
	// Applied is the last record that the standby's store shows.
	Applied uint64 `json:"applied"`
	// Durable says that every fsync up to this record is on the standby's disk.
	Durable uint64 `json:"durable"`
}

// Lag is how far a standby is behind its primary.
type Lag struct {
	Records uint64 `json:"records"`
	Bytes   uint64 `json:"bytes"`
	// Seconds is the age of the oldest record not yet applied; 0 when there is none.
	Seconds float64 `json:"seconds"`
}

// Peer is another node as this one sees it.
type Peer struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// Role is "primary", "standby", "witness" or "unknown".
	Role string `json:"role"`
	// State is "streaming", "catching up", "syncing", "connecting", "unreachable"
	// or "refused".
	State  string `json:"state"`
	InSync bool   `json:"in_sync"`
	LSN    LSNs   `json:"lsn"`
	Lag    Lag    `json:"lag"`
	// LastContact is when the peer last said anything; zero for never.
	LastContact time.Time `json:"last_contact"`
	Error       string    `json:"error,omitempty"`
	// CatchUp is set while State is "catching up".
	CatchUp *CatchUp `json:"catch_up,omitempty"`
	// Resumed says how the standby's stream began: behind which record it went
	// on, or why it gets a complete copy. Only a primary knows.
	Resumed string `json:"resumed,omitempty"`
	// Sync is the complete copy that the peer receives.
	Sync *Sync `json:"sync,omitempty"`
}

// CatchUp is how a standby that is far behind comes closer, record by record.
type CatchUp struct {
	Started time.Time `json:"started"`
	// Bytes is the size of the records that it has not applied yet.
	Bytes uint64 `json:"bytes"`
	// Rate is by how many bytes a second that shrinks: what it applies less
	// what is written meanwhile.
	Rate float64 `json:"bytes_per_second"`
	// SecondsLeft is the time until it is there if the rate stays so; not set
	// while it does not come closer.
	SecondsLeft *float64 `json:"seconds_left,omitempty"`
}

// Journal is a primary's log on disk, for standbys that are further behind
// than the ring in memory reaches.
type Journal struct {
	// Active says that a standby needs it now.
	Active   bool  `json:"active"`
	Bytes    int64 `json:"bytes"`
	MaxBytes int64 `json:"max_bytes"`
	// First and Last are the LSNs of what it holds, 0 for nothing.
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	// Error says why it cannot be used now.
	Error string `json:"error,omitempty"`
}

// Sync is the progress of a complete copy, as the standby or its primary sees it.
type Sync struct {
	Node    string    `json:"node"`
	Started time.Time `json:"started"`
	Files   uint64    `json:"files"`
	Bytes   uint64    `json:"bytes"`
}

// Waiting is what a primary's applications wait for at the moment.
type Waiting struct {
	// Fsyncs is how many requests wait for standbys (with durability sync all
	// kinds of them), the first of them since Since.
	Fsyncs int       `json:"fsyncs"`
	Since  time.Time `json:"since,omitzero"`
	// Writers is how many are held back since Standby cannot follow; together they
	// may write Rate bytes a second, when Limited.
	Writers int     `json:"writers"`
	Limited bool    `json:"limited"`
	Rate    float64 `json:"rate"`
	Standby string  `json:"standby,omitempty"`
}

// Problem is something an administrator should know, and what to do about it.
type Problem struct {
	What string `json:"what"`
	Do   string `json:"do,omitempty"`
}

// Epoch is one line of the history: where a term of a primary began.
type Epoch struct {
	Epoch   uint64 `json:"epoch"`
	Primary string `json:"primary"`
	// Begin is the LSN of the epoch's first record.
	Begin uint64 `json:"begin"`
}

// Status is what `replfs status --json` prints.
type Status struct {
	Version   string `json:"version"`
	Cluster   string `json:"cluster"`
	ClusterID string `json:"cluster_id"`
	Node      string `json:"node"`
	// Role is "starting", "primary" or "standby".
	Role string `json:"role"`
	// Writable says whether the mount accepts mutations right now.
	Writable bool `json:"writable"`
	// Primary is the node this one believes to be primary; "" when unknown.
	Primary    string    `json:"primary"`
	Epoch      uint64    `json:"epoch"`
	Durability string    `json:"durability"`
	Mount      string    `json:"mount"`
	Store      string    `json:"store"`
	Started    time.Time `json:"started"`
	// Resumed says what the node found when it started, and by which way it went on.
	Resumed string `json:"resumed,omitempty"`
	LSN     LSNs   `json:"lsn"`
	Lag     Lag    `json:"lag"`
	// InSync: on a standby, whether the primary counts on it (as last told);
	// on a primary, always true.
	InSync bool   `json:"in_sync"`
	Peers  []Peer `json:"peers"`
	// Waiting is nil but on a primary.
	Waiting *Waiting `json:"waiting,omitempty"`
	Sync    *Sync    `json:"sync,omitempty"`
	// Journal is set on a primary that has one.
	Journal *Journal `json:"journal,omitempty"`
	History []Epoch  `json:"history"`
	// Requests counts what the kernel has sent to the mount since it was made,
	// by FUSE opcode.
	Requests map[string]uint64 `json:"requests"`
	Problems []Problem         `json:"problems"`
}
