package sandbox

import "fmt"

// UIDRange are the user and group ids that instances run with, one for each, where the
// runner is root. They must be nobody else's.
type UIDRange struct {
	// Base is the first; 0: DefaultUIDBase.
	Base uint32
	// Count is how many there are, so how many instances and builds run at once; 0:
	// DefaultUIDCount.
	Count uint32
}

// The default range lies beyond those that systemd and distributions hand out
// (systemd's "Users, Groups, UIDs and GIDs").
const (
	DefaultUIDBase  = 2_000_000_000
	DefaultUIDCount = 65_536
)

func (r UIDRange) withDefaults() UIDRange {
	if r.Base == 0 {
		r.Base = DefaultUIDBase
	}
	if r.Count == 0 {
		r.Count = DefaultUIDCount
	}
	return r
}

// last is the highest id.
func (r UIDRange) last() uint64 { return uint64(r.Base) + uint64(r.Count) - 1 }

// Check returns an error where the range is not valid on any machine.
func (r UIDRange) Check() error {
	// 65534 and 65535 are "nobody" and "none"; -1 is "unchanged" (setresuid(2)).
	if r = r.withDefaults(); r.Base < 65_536 || r.last() >= 1<<32-1 {
		return fmt.Errorf("the range of uids %d to %d is not valid: it has to lie between 65536 and %d", r.Base, r.last(), uint32(1<<32-2))
	}
	return nil
}
