package workload

import (
	"math/rand/v2"
	"strings"
	"sync"
)

// kind is what a name was when it was last seen.
type kind int

const (
	regular kind = iota
	link         // symbolic
	special      // fifo, device, socket
	directory
	kinds
)

// maxDepth is how deep operations name things; renamed directories may end up
// somewhat deeper, at most at maxHeight.
const (
	maxDepth  = 5
	maxHeight = 12
)

// The names to choose from are few, so that writers meet. Some are such that
// careless code stumbles over them.
var (
	fileNames = append(numbered("f", 28),
		"a b", "new\nline", "bytes\xff\xfe", "ünï", "*?[", "-", "f.tmp", strings.Repeat("x", 255))
	dirNames = numbered("d", 8)
)

func numbered(prefix string, n int) []string {
	var names []string
	for i := range n {
		names = append(names, prefix+string(rune('0'+i/10))+string(rune('0'+i%10)))
	}
	return names
}

// namespace is what the writers believe to be in the tree. It is not locked
// together with the filesystem, so that it may be wrong: an operation on what
// is not there is one more conflict.
type namespace struct {
	mu     sync.Mutex
	byKind [kinds][]string
	where  map[string]place
}

type place struct {
	kind  kind
	index int
}

func newNamespace() *namespace { return &namespace{where: map[string]place{}} }

// put notes that path exists, as a k.
func (n *namespace) put(path string, k kind) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.set(path, k)
}

// drop notes that path is gone, with all below it.
func (n *namespace) drop(path string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.take(path)
}

// move notes a rename.
func (n *namespace) move(from, to string) {
	if from == to {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	moved := n.take(from)
	n.take(to)
	n.give(to, moved)
}

// exchange notes a rename with RENAME_EXCHANGE.
func (n *namespace) exchange(a, b string) {
	if a == b {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	ta, tb := n.take(a), n.take(b)
	n.give(a, tb)
	n.give(b, ta)
}

// pick chooses among the names of the given kinds, if there are any.
func (n *namespace) pick(rng *rand.Rand, among ...kind) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	total := 0
	for _, k := range among {
		total += len(n.byKind[k])
	}
	if total == 0 {
		return "", false
	}
	i := rng.IntN(total)
	for _, k := range among {
		if i < len(n.byKind[k]) {
			return n.byKind[k][i], true
		}
		i -= len(n.byKind[k])
	}
	return "", false
}

// height tells how many levels lie below path.
func (n *namespace) height(path string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.where[path].kind != directory {
		return 0
	}
	most, prefix := 0, path+"/"
	for p := range n.where {
		if strings.HasPrefix(p, prefix) {
			most = max(most, strings.Count(p[len(path):], "/"))
		}
	}
	return most
}

// item is a part of a subtree that is moved: below is "" or begins with "/".
type item struct {
	below string
	kind  kind
}

func (n *namespace) set(path string, k kind) {
	n.unset(path)
	n.where[path] = place{k, len(n.byKind[k])}
	n.byKind[k] = append(n.byKind[k], path)
}

func (n *namespace) unset(path string) {
	p, ok := n.where[path]
	if !ok {
		return
	}
	list := n.byKind[p.kind]
	last := list[len(list)-1]
	list[p.index] = last
	n.where[last] = p
	n.byKind[p.kind] = list[:len(list)-1]
	delete(n.where, path)
}

// take removes path and all below it. The result is in an order that depends
// on nothing but what was done before.
func (n *namespace) take(path string) []item {
	p, ok := n.where[path]
	if !ok {
		return nil
	}
	items := []item{{"", p.kind}}
	if p.kind == directory {
		prefix := path + "/"
		for k, list := range n.byKind {
			for _, q := range list {
				if strings.HasPrefix(q, prefix) {
					items = append(items, item{q[len(path):], kind(k)})
				}
			}
		}
	}
	for _, it := range items {
		n.unset(path + it.below)
	}
	return items
}

func (n *namespace) give(path string, items []item) {
	for _, it := range items {
		n.set(path+it.below, it.kind)
	}
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

func parent(path string) string {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "."
	}
	return path[:i]
}

func depth(path string) int {
	if path == "." {
		return 0
	}
	return strings.Count(path, "/") + 1
}
