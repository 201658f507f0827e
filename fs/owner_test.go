package fs

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	git   = user{uid: 4001, gid: 4001, groups: []uint32{4001, 4100}}
	root  = user{}
	other = user{uid: 4002, gid: 4002, groups: []uint32{4002}}
)

// stat is mode, owner and group as the mount shows them.
func stat(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return fmt.Sprintf("%o %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
}

// TestOwnership: what other users make has the owner, group and mode that a
// local file system would have given it. Each script runs on such a one as
// well, which says what is right.
func TestOwnership(t *testing.T) {
	e := newEnv(t, options{base: disk})
	native := e.path("native")
	must(t, os.Mkdir(native, 0o755))
	for _, c := range []struct {
		name  string
		setup string // as root
		who   user
		run   string
	}{
		{"plain", "", git, "echo x >f; mkdir d; ln -s f l; mkfifo p"},
		{"suid at creation", "", git, `perl -MFcntl -e 'umask 0; sysopen(F, "f", O_CREAT | O_WRONLY, 06755) or die $!'`},
		{"umask", "", user{4001, 4001, nil, "027"}, "echo x >f; mkdir d; mkfifo p"},
		{"umask of root", "", user{umask: "077"}, "echo x >f; mkdir d"},
		{"setgid directory", "chgrp 4100 .; chmod 2777 .", git, "echo x >f; mkdir d; mkdir d/e; ln -s f l; mkfifo p"},
		{"setgid directory of root's group", "chmod 2777 .", git, "echo x >f; mkdir d; mkfifo p"},
		{"setgid directory of a foreign group", "chgrp 4100 .; chmod 2777 .", other, "echo x >f; mkdir d; chmod 2755 f; chmod 2755 d"},
		{"setgid file of a foreign group", "echo x >f; chown 4002:4100 f", other, "chmod 2775 f"},
		{"default acl", "setfacl -d -m u:4002:rwx,g::rx,o::- .", user{4001, 4001, nil, "077"}, "echo x >f; mkdir d; mkdir d/e; mkfifo p; touch d/e/g"},
		{"default acl with umask of root", "setfacl -d -m u:4002:rwx .", user{umask: "022"}, "echo x >f; mkdir d"},
		{"write clears suid and sgid", "cp /bin/true f; chown 4001:4001 f; chmod 6777 f", other, "echo >>f"},
		{"write clears suid, not sgid", "cp /bin/true f; chown 4001:4001 f; chmod 6767 f", other, "echo >>f"},
		{"write by the owner", "cp /bin/true f; chown 4001:4001 f; chmod 6755 f", git, "echo >>f"},
		{"write cached", "cp /bin/true f; chown 4001:4001 f; chmod 6777 f", other, "echo 1<>f"},
		{"write by root", "cp /bin/true f; chmod 6755 f", user{}, "echo >>f"},
		{"truncate clears", "cp /bin/true f; chown 4001:4001 f; chmod 6777 f", other, "truncate -s 5 f"},
		{"open truncating clears", "cp /bin/true f; chown 4001:4001 f; chmod 6777 f", other, ": >f"},
		{"fallocate clears", "cp /bin/true f; chown 4001:4001 f; chmod 6777 f", other, "fallocate -l 1M f"},
		{"chgrp clears", "cp /bin/true f; chown 4001:4001 f; chmod 6755 f", git, "chgrp 4100 f"},
		{"chown by root", "cp /bin/true f; chmod 6755 f", user{}, "chown 4001 f"},
		{"capabilities", "cp /bin/true f; setcap cap_net_raw+ep f 2>/dev/null || :; chmod 777 f", other, "echo >>f"},
		{"write by a supplementary group keeps sgid", "echo x >f; chown 4002:4100 f; chmod 2666 f", git, "echo >>f"},
		{"truncate by a supplementary group keeps sgid", "echo x >f; chown 4002:4100 f; chmod 2666 f", git, "truncate -s 1 f"},
		{"truncate by root's group's foreigner clears sgid", "echo x >f; chmod 2666 f", other, "truncate -s 1 f"},
		{"fallocate by a supplementary group keeps sgid", "echo x >f; chown 4002:4100 f; chmod 6666 f", git, "fallocate -l 1M f"},
		{"chown by root keeps sgid without group execute", "echo x >f; chown 4001:4100 f; chmod 6664 f; echo x >g; chgrp 4100 g; chmod 2664 g", root, "chown 4002 f; chgrp 4001 g"},
		{"chgrp by the owner, not of the old group", "echo x >f; chown 4001:4002 f; chmod 2664 f", git, "chgrp 4100 f"},
		{"chgrp by the owner, of both groups", "echo x >f; chown 4001:4100 f; chmod 2664 f; echo x >g; chown 4001:4100 g; chmod 6664 g", git, "chgrp 4001 f g"},
		{"chgrp of a FIFO", "mkfifo p; chown 4001:4002 p; chmod 2664 p", git, "chgrp 4100 p"},
		{"default acl by the owner, not of the group", "mkdir d; chown 4002:4100 d; chmod 2775 d", other, "setfacl -d -m u:4001:r d"},
		{"fallocate by the root of a user namespace", "echo x >f; chown 4002:4002 f; chmod 6666 f", git, "unshare --map-root-user fallocate -l 1M f || fallocate -l 1M f"},
		{"setfacl by the owner clears sgid", "cp /bin/true f; chown 4002:4100 f; chmod 2755 f", other, "setfacl -m u:4001:r f"},
		{"setfacl by the group keeps sgid", "cp /bin/true f; chown 4001:4100 f; chmod 2755 f", git, "setfacl -m u:4002:r f"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e.t = t
			name := strings.ReplaceAll(c.name, " ", "_")
			for _, base := range []string{native, e.mnt} {
				dir := base + "/" + name
				must(t, os.Mkdir(dir, 0o777))
				root.must(t, dir, ":; "+c.setup)
				c.who.must(t, dir, c.run)
			}
			var got [2]string
			for i, base := range []string{native, e.mnt} {
				got[i] = root.must(t, base+"/"+name, `find . ! -name l -printf '%P %y %m %U:%G\n' | sort; getfacl -npR . | grep -v '^#'`)
			}
			if got[0] != got[1] {
				t.Errorf("native:\n%s\n\nmount:\n%s", got[0], got[1])
			}
			e.equal()
			e.sound()
		})
	}
	e.t = t
}

// TestPermissions: the kernel refuses what it refuses elsewhere, and nothing
// of it is recorded.
func TestPermissions(t *testing.T) {
	e := newEnv(t, options{})
	root.must(t, e.mnt, `mkdir -m 755 closed; mkdir -m 1777 sticky; mkdir -m 770 team; chgrp 4100 team
		echo x >closed/f; chmod 644 closed/f; echo x >secret; chmod 600 secret; echo x >sticky/f; echo x >team/f; chmod 660 team/f; chgrp 4100 team/f
		echo x >acl; chmod 600 acl; setfacl -m u:4002:rw acl`)
	e.records()
	for _, script := range []string{
		"cat secret", "echo >>closed/f", "echo >closed/new", "rm closed/f", "mv closed/f closed/g", "ln secret sticky/s2 2>/dev/null && cat sticky/s2",
		"rm -f sticky/f", "mv sticky/f sticky/g", "ls team", "chmod 777 closed/f", "chown 4002 closed/f", "touch -d yesterday closed/f",
		"truncate -s 0 closed/f", "setfattr -n user.a -v b closed/f", "mknod sticky/dev c 1 3",
	} {
		other.refused(t, e.mnt, script)
	}
	for _, r := range e.records() {
		if !strings.HasPrefix(r.Path, "sticky/s2") { // protected_hardlinks decides about this one
			t.Errorf("a refused operation gave %s", r.String())
		}
	}
	other.must(t, e.mnt, "echo y >>acl; echo z >sticky/mine; rm sticky/mine")
	git.must(t, e.mnt, "echo y >>team/f; ls team; echo z >team/mine") // by a supplementary group
	if got := stat(t, e.in("team/mine")); got != "666 4001:4001" {
		t.Errorf("team/mine: %s", got)
	}
	e.equal()
}

// TestStaleSuid: the kernel must not run a changed file with the rights that
// its cached mode still gives.
func TestStaleSuid(t *testing.T) {
	e := newEnv(t, options{base: disk})
	root.must(t, e.mnt, "cp $(readlink -f $(command -v id)) id; chmod 4777 id")
	if got := other.must(t, e.mnt, "./id -u"); got != "0" {
		t.Skipf("setuid has no effect here: %s", got)
	}
	for _, how := range []string{"echo >>id", "cat $(readlink -f $(command -v id)) >id", "fallocate -o 1M -l 4096 id"} {
		root.must(t, e.mnt, "cp $(readlink -f $(command -v id)) id; chmod 4777 id; ./id -u")
		if got := other.must(t, e.mnt, how+"; ./id -u"); got != "4002" {
			t.Errorf("after %q by another user: effective uid %s", how, got)
		}
	}
	e.equal()
}
