package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// The format of bbolt's file: https://github.com/etcd-io/bbolt/tree/v1.5.0/internal/common.
const (
	boltMagic      = 0xED0CDAED
	boltVersion    = 2
	pageHeader     = 16
	pageElement    = 16
	metaBytes      = 64
	pageBranch     = 0x01
	pageLeaf       = 0x02
	leafBucket     = 0x01
	maxBucketDepth = 32
)

// PageError is a damaged page of the database of an embedded store.
type PageError struct {
	// File is the database, Page the number of the page.
	File string
	Page uint64
	// Detail says what is wrong with it.
	Detail string
}

// Error implements error.
func (e *PageError) Error() string {
	return fmt.Sprintf("page %d of %s is damaged: %s", e.Page, e.File, e.Detail)
}

// pages reads the file of a bbolt database by itself: bbolt ends the process on what it does
// not expect.
type pages struct {
	file string
	data []byte
	size uint64 // of a page
	end  uint64 // the first page that is not in use
	seen map[uint64]bool
	bad  []*PageError
}

// walkDatabase calls visit for every key of every bucket that can be reached, and returns the
// pages that are damaged. What it passes is valid during the call.
func walkDatabase(file string, visit func(bucket string, key, value []byte) error) (bad []*PageError, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < 2*4096 {
		return []*PageError{{File: file, Detail: "the file is cut off"}}, nil
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(data)) }()
	p := &pages{file: file, data: data, seen: map[uint64]bool{}}
	root, ok := p.meta()
	if !ok {
		return p.bad, nil
	}
	p.bucket(root, "", 0, visit)
	return p.bad, nil
}

func (p *pages) damaged(page uint64, format string, args ...any) {
	p.bad = append(p.bad, &PageError{File: p.file, Page: page, Detail: fmt.Sprintf(format, args...)})
}

// meta finds the newer of the two valid meta pages, and returns the root of the buckets.
func (p *pages) meta() (root uint64, ok bool) {
	var newest uint64
	for _, at := range p.metaOffsets() {
		m := p.data[at+pageHeader : at+pageHeader+metaBytes]
		u32 := func(i int) uint32 { return binary.LittleEndian.Uint32(m[i:]) }
		u64 := func(i int) uint64 { return binary.LittleEndian.Uint64(m[i:]) }
		sum := fnv.New64a()
		sum.Write(m[:56])
		if u32(0) != boltMagic || u32(4) != boltVersion || u64(56) != sum.Sum64() || u32(8) < 512 || u32(8) > 1<<20 {
			continue
		}
		if tx := u64(48); !ok || tx >= newest {
			newest, ok = tx, true
			p.size, root, p.end = uint64(u32(8)), u64(16), u64(40)
		}
	}
	if !ok {
		p.damaged(0, "neither of the two pages that describe the file is valid")
	}
	return root, ok
}

// metaOffsets are where the two meta pages may begin, of pages of the usual sizes.
func (p *pages) metaOffsets() []int {
	out := []int{0}
	for size := 512; size <= 64<<10; size *= 2 {
		if size+pageHeader+metaBytes <= len(p.data) {
			out = append(out, size)
		}
	}
	return out
}

// page returns the bytes of a page with its overflow; nil, when it is damaged.
func (p *pages) page(id uint64) []byte {
	switch {
	case id < 2 || id >= p.end || (id+1)*p.size > uint64(len(p.data)):
		p.damaged(id, "it is referred to and is not in the file")
		return nil
	case p.seen[id]:
		p.damaged(id, "it is referred to twice")
		return nil
	}
	p.seen[id] = true
	at := id * p.size
	head := p.data[at : at+pageHeader]
	if got := binary.LittleEndian.Uint64(head); got != id {
		p.damaged(id, "it says that it is page %d", got)
		return nil
	}
	overflow := uint64(binary.LittleEndian.Uint32(head[12:]))
	end := (id + 1 + overflow) * p.size
	if overflow > p.end || end > uint64(len(p.data)) {
		p.damaged(id, "it is longer than the file")
		return nil
	}
	return p.data[at:end]
}

// bucket walks the tree of pages of a bucket.
func (p *pages) bucket(root uint64, name string, depth int, visit func(string, []byte, []byte) error) {
	if data := p.page(root); data != nil {
		p.node(root, data, name, depth, visit)
	}
}

// node walks one page, and what is below it. page is for errors: an inline bucket has none
// of its own.
func (p *pages) node(page uint64, data []byte, name string, depth int, visit func(string, []byte, []byte) error) {
	if depth > maxBucketDepth {
		p.damaged(page, "the tree is too deep")
		return
	}
	flags, count := binary.LittleEndian.Uint16(data[8:]), int(binary.LittleEndian.Uint16(data[10:]))
	if flags != pageBranch && flags != pageLeaf {
		p.damaged(page, "it is of type %#x, neither branch nor leaf", flags)
		return
	}
	if pageHeader+count*pageElement > len(data) || flags == pageBranch && count == 0 {
		p.damaged(page, "it says that it has %d elements", count)
		return
	}
	var last []byte
	for i := range count {
		at := pageHeader + i*pageElement
		e := data[at:]
		u32 := func(i int) uint64 { return uint64(binary.LittleEndian.Uint32(e[i:])) }
		var pos, keySize, valueSize uint64
		if flags == pageBranch {
			pos, keySize = u32(0), u32(4)
		} else {
			pos, keySize, valueSize = u32(4), u32(8), u32(12)
		}
		begin := uint64(at) + pos
		if begin > uint64(len(data)) || keySize > uint64(len(data)) || valueSize > uint64(len(data)) || begin+keySize+valueSize > uint64(len(data)) {
			p.damaged(page, "element %d is outside of it", i)
			return
		}
		key, value := data[begin:begin+keySize], data[begin+keySize:begin+keySize+valueSize]
		if i > 0 && bytes.Compare(last, key) >= 0 {
			p.damaged(page, "element %d is out of order", i)
			return
		}
		last = key
		switch {
		case flags == pageBranch:
			p.bucket(binary.LittleEndian.Uint64(e[8:]), name, depth+1, visit)
		case u32(0)&leafBucket != 0:
			p.inner(page, string(key), value, depth, visit)
		default:
			if err := visit(name, key, value); err != nil {
				p.damaged(page, "element %d: %v", i, err)
			}
		}
	}
}

// inner walks a bucket of the bucket of all.
func (p *pages) inner(page uint64, name string, value []byte, depth int, visit func(string, []byte, []byte) error) {
	if len(value) < 16 {
		p.damaged(page, "the head of bucket %q is cut off", name)
		return
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		p.bucket(root, name, depth+1, visit)
		return
	}
	if len(value) < 16+pageHeader {
		p.damaged(page, "bucket %q is cut off", name)
		return
	}
	p.node(page, value[16:], name, depth+1, visit)
}

// revisionKey is the key of a value in etcd's bucket "key": the revision of the change and
// the number in it, and whether it deletes.
type revisionKey struct {
	main, sub uint64
	deleted   bool
}

// checkValue decodes an entry of etcd's bucket "key", as etcd does when it starts, which
// ends the process when it cannot.
func checkValue(key, value []byte) (*mvccpb.KeyValue, revisionKey, error) {
	var r revisionKey
	if n := len(key); n != 17 && n != 18 || key[8] != '_' || n == 18 && key[17] != 't' {
		return nil, r, fmt.Errorf("key %x is not a revision", key)
	}
	r = revisionKey{binary.BigEndian.Uint64(key), binary.BigEndian.Uint64(key[9:]), len(key) == 18}
	kv := &mvccpb.KeyValue{}
	if err := proto.Unmarshal(value, kv); err != nil {
		return nil, r, fmt.Errorf("revision %d: %w", r.main, err)
	}
	if len(kv.GetKey()) == 0 || !r.deleted && uint64(kv.GetModRevision()) != r.main {
		return nil, r, fmt.Errorf("revision %d has the content of revision %d", r.main, kv.GetModRevision())
	}
	return kv, r, nil
}

// checkDatabase finds damage of the database before etcd does, and says which entry of the
// log it has applied last: 0 for a new one.
func checkDatabase(file string) (applied uint64, err error) {
	bad, err := walkDatabase(file, func(bucket string, key, value []byte) error {
		switch {
		case bucket == "key":
			_, _, err := checkValue(key, value)
			return err
		case bucket == "meta" && string(key) == "consistent_index" && len(value) == 8:
			applied = binary.BigEndian.Uint64(value)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, e := range bad {
		errs = append(errs, e)
	}
	return applied, errors.Join(errs...)
}
