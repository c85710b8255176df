package gateway

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Kind is one kind of resource: a field of pb.Resource, and all that is known of its
// objects. Each is declared in a file of its own (kind_route.go, …); what works with all
// kinds, here and in the API, access control, the command line and the store, goes through Kinds.
type Kind struct {
	// Collection is the part of names that says the kind: "routes", "functionVersions".
	Collection string
	// Singular is the word for one object in messages: "route", "function version".
	Singular string
	// WrittenBy says who writes the objects, and what to do instead, of a kind that nobody
	// writes through the API; "" for kinds that people write.
	WrittenBy string
	// Owner is the collection whose rights are the rights on these objects: its own, but
	// for a kind that is a part of another.
	Owner string
	// Field is that of pb.Resource which holds the objects.
	Field protoreflect.FieldDescriptor
	// Service has the standard methods of the kind.
	Service protoreflect.ServiceDescriptor

	rank int
	behaviour
}

// behaviour is what a kindSpec says, for objects of any kind.
type behaviour interface {
	checkID(id string) error
	outlivesTargets() bool
	whenUnused() string

	normalize(*Model, Object)
	validate(*checker, Object)
	warn(*checker, Object)
	policies(o Object, visit func(path string, at Places, p *pb.Policies))
	references(m *Model, project string, o Object) []reference
	keys(Object) []string
	check(*Snapshot, Object) []Problem
	unfit(r reference, target Object) string
}

// kindSpec declares a kind. Only Singular and Rank must be set.
type kindSpec[T Object] struct {
	Singular, WrittenBy, Owner string
	// Rank is the place in the order of Kinds: what others refer to comes first.
	Rank int
	// ID checks an id; nil: a DNS label, which may hold dots.
	ID func(id string) error
	// Unused says what it means when nothing refers to an object; "" when it means nothing.
	Unused string
	// Outlives: objects may refer to what is no longer there.
	Outlives bool

	// Normalize brings an object into its stored form. See Model.Normalize.
	Normalize func(*Model, T)
	// Validate finds what is wrong with an object alone that its proto cannot say.
	Validate func(*checker, T)
	// Warn finds what is valid in an object and may not be meant.
	Warn func(*checker, T)
	// Policies visits the policies that stand on an object, in order of fields.
	Policies func(o T, visit func(path string, at Places, p *pb.Policies))
	// References lists the mentions of other objects, in order of fields; nil: those of
	// its policies.
	References func(m *Model, project string, o T) []reference
	// Keys are what two objects cannot both have, so that they find each other.
	Keys func(T) []string
	// Check finds what is wrong between an object and others, beyond its references.
	Check func(*Snapshot, T) []Problem
	// Unfit says why an object cannot be what a reference means; "" when it can.
	Unfit func(r reference, target T) string
}

// The table. Go initializes it before the declarations of kinds, which add to it.
var (
	kindsByCollection = map[string]*Kind{}
	kindsByMessage    = map[protoreflect.FullName]*Kind{}
)

// addKind puts a kind into the table. It panics when the kind is not of pb.Resource, or
// has the rank of another: a program with such a table cannot work.
func addKind[T Object](s kindSpec[T]) *Kind {
	var none T
	message := none.ProtoReflect().Descriptor()
	k := &Kind{Singular: s.Singular, WrittenBy: s.WrittenBy, Service: serviceOf(message), rank: s.Rank, behaviour: &s}
	for f := range fieldsOf(&pb.Resource{}) {
		if f.Message() == message {
			k.Field = f
		}
	}
	if k.Field == nil || kindsByMessage[message.FullName()] != nil {
		panic(fmt.Sprintf("%s is not a field of Resource, or is declared twice", message.FullName()))
	}
	k.Collection = k.Field.JSONName() + "s"
	k.Owner = cmp.Or(s.Owner, k.Collection)
	for _, other := range kindsByCollection {
		if other.rank == k.rank {
			panic(fmt.Sprintf("%s and %s have the same rank %d", other.Collection, k.Collection, k.rank))
		}
	}
	kindsByCollection[k.Collection], kindsByMessage[message.FullName()] = k, k
	return k
}

// serviceOf is the service of a kind: RouteService for Route.
func serviceOf(message protoreflect.MessageDescriptor) protoreflect.ServiceDescriptor {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(message.FullName() + "Service")
	if err != nil {
		panic(fmt.Sprintf("%s has no service: %v", message.FullName(), err))
	}
	return d.(protoreflect.ServiceDescriptor)
}

// Kinds are all kinds in the order in which All lists their objects: what others refer to
// comes first.
var Kinds = sync.OnceValue(func() []*Kind {
	return slices.SortedFunc(maps.Values(kindsByCollection), func(a, b *Kind) int { return cmp.Compare(a.rank, b.rank) })
})

// Collections are the collections of all kinds, in the order of the fields of pb.Resource,
// which is that of lists for people.
var Collections = sync.OnceValue(func() []string {
	kinds := slices.SortedFunc(maps.Values(kindsByCollection), func(a, b *Kind) int { return cmp.Compare(a.Field.Number(), b.Field.Number()) })
	return namesOf(kinds, func(k *Kind) string { return k.Collection })
})

// Writable are those of Collections that people write to.
var Writable = sync.OnceValue(func() []string {
	return slices.DeleteFunc(slices.Clone(Collections()), func(c string) bool { return kindsByCollection[c].WrittenBy != "" })
})

// KindFor is the kind of a collection such as "routes"; nil when there is none.
func KindFor(collection string) *Kind { return kindsByCollection[collection] }

// KindOfMessage is the kind of a type of messages; nil when they are not resources.
func KindOfMessage(d protoreflect.MessageDescriptor) *Kind { return kindsByMessage[d.FullName()] }

// noKind is that of nil, and of what is not a resource: nothing is known of it.
var noKind = &Kind{behaviour: &kindSpec[Object]{}}

// kindOfObject is the kind of an object, or noKind.
func kindOfObject(o Object) *Kind {
	if o == nil {
		return noKind
	}
	return cmp.Or(KindOfMessage(o.ProtoReflect().Descriptor()), noKind)
}

// FromResource takes the object out of its envelope; nil when there is none.
func FromResource(r *pb.Resource) Object {
	m := r.ProtoReflect()
	field := m.WhichOneof(m.Descriptor().Oneofs().ByName("kind"))
	if field == nil || !m.Get(field).Message().IsValid() {
		return nil
	}
	o, _ := m.Get(field).Message().Interface().(Object)
	return o
}

// ToResource puts an object into its envelope; nil for nil.
func ToResource(o Object) *pb.Resource {
	if o == nil || !o.ProtoReflect().IsValid() {
		return nil
	}
	k := KindOfMessage(o.ProtoReflect().Descriptor())
	if k == nil {
		return nil
	}
	r := &pb.Resource{}
	r.ProtoReflect().Set(k.Field, protoreflect.ValueOfMessage(o.ProtoReflect()))
	return r
}

func (s *kindSpec[T]) checkID(id string) error {
	if s.ID != nil {
		return s.ID(id)
	}
	if !idPattern.MatchString(id) {
		return fmt.Errorf("id %q must start and end with a-z or 0-9 and hold only a-z, 0-9, - and dots, at most 63 of them", id)
	}
	return nil
}

func (s *kindSpec[T]) outlivesTargets() bool { return s.Outlives }

func (s *kindSpec[T]) whenUnused() string { return s.Unused }

func (s *kindSpec[T]) normalize(m *Model, o Object) {
	if s.Normalize != nil {
		s.Normalize(m, o.(T))
	}
}

func (s *kindSpec[T]) validate(c *checker, o Object) {
	if s.Validate != nil {
		s.Validate(c, o.(T))
	}
}

func (s *kindSpec[T]) warn(c *checker, o Object) {
	if s.Warn != nil {
		s.Warn(c, o.(T))
	}
}

func (s *kindSpec[T]) policies(o Object, visit func(path string, at Places, p *pb.Policies)) {
	if s.Policies != nil {
		s.Policies(o.(T), visit)
	}
}

func (s *kindSpec[T]) references(m *Model, project string, o Object) []reference {
	if s.References != nil {
		return s.References(m, project, o.(T))
	}
	var out []reference
	s.policies(o, func(path string, _ Places, p *pb.Policies) {
		out = append(out, m.policyReferences(project, path, p)...)
	})
	return out
}

func (s *kindSpec[T]) keys(o Object) []string {
	if s.Keys == nil {
		return nil
	}
	return s.Keys(o.(T))
}

func (s *kindSpec[T]) check(snapshot *Snapshot, o Object) []Problem {
	if s.Check == nil {
		return nil
	}
	return s.Check(snapshot, o.(T))
}

func (s *kindSpec[T]) unfit(r reference, target Object) string {
	if s.Unfit == nil {
		return ""
	}
	return s.Unfit(r, target.(T))
}
