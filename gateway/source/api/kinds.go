package api

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// registerKinds registers the services of all kinds. Request and response messages of the
// standard methods differ in names only, so one implementation serves all kinds by
// reflection over the messages.
func registerKinds(s grpc.ServiceRegistrar, core Core) {
	for _, collection := range gateway.Collections() {
		k := newKind(core, gateway.KindFor(collection))
		s.RegisterService(&grpc.ServiceDesc{
			ServiceName: string(k.svc.FullName()),
			HandlerType: (*any)(nil),
			Methods:     k.methods(),
			Metadata:    k.svc.ParentFile().Path(),
		}, k)
	}
}

// kind serves the five methods of one kind of resource.
type kind struct {
	core Core
	svc  protoreflect.ServiceDescriptor
	// singular is the field of the resource in messages ("route"), plural that of
	// lists ("routes").
	singular, plural protoreflect.Name
	// collection is that of names: plural in camel case.
	collection string
}

func newKind(core Core, k *gateway.Kind) *kind {
	name := k.Field.Name()
	return &kind{core: core, svc: k.Service, singular: name, plural: name + "s", collection: k.Collection}
}

// verb is a method without its service: it reads in and fills out.
type verb func(ctx context.Context, in, out protoreflect.Message) error

func (k *kind) methods() []grpc.MethodDesc {
	verbs := map[string]verb{"Get": k.get, "List": k.list, "Create": k.create, "Update": k.update, "Delete": k.delete}
	var descs []grpc.MethodDesc
	for i := range k.svc.Methods().Len() {
		m := k.svc.Methods().Get(i)
		for prefix, v := range verbs {
			if strings.HasPrefix(string(m.Name()), prefix) {
				descs = append(descs, grpc.MethodDesc{MethodName: string(m.Name()), Handler: unary(m, v)})
			}
		}
	}
	return descs
}

// unary adapts a verb to grpc's handler type.
func unary(m protoreflect.MethodDescriptor, v verb) grpc.MethodHandler {
	full := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
	return func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := newMessage(m.Input())
		if err := decode(in.Interface()); err != nil {
			return nil, err
		}
		call := func(ctx context.Context, req any) (any, error) {
			out := newMessage(m.Output())
			if err := v(ctx, req.(proto.Message).ProtoReflect(), out); err != nil {
				return nil, err
			}
			return out.Interface(), nil
		}
		if intercept == nil {
			return call(ctx, in.Interface())
		}
		return intercept(ctx, in.Interface(), &grpc.UnaryServerInfo{Server: srv, FullMethod: full}, call)
	}
}

func newMessage(d protoreflect.MessageDescriptor) protoreflect.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(fmt.Sprintf("message %s is not linked in: %v", d.FullName(), err))
	}
	return t.New()
}

func field(m protoreflect.Message, name protoreflect.Name) protoreflect.FieldDescriptor {
	return m.Descriptor().Fields().ByName(name)
}

func text(m protoreflect.Message, name protoreflect.Name) string {
	return m.Get(field(m, name)).String()
}

func (k *kind) find(name string) (gateway.Object, error) {
	if err := k.own(name); err != nil {
		return nil, err
	}
	s := k.core.Snapshot()
	o := s.Get(name)
	if o == nil {
		o = s.Shell(name)
	}
	if o == nil {
		return nil, status.Errorf(codes.NotFound, "%.256s does not exist", name)
	}
	return o, nil
}

// own checks that a name is of this kind.
func (k *kind) own(name string) error {
	_, collection, _, err := gateway.KindOf(name)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "name: %v", err)
	}
	if collection != k.collection {
		return status.Errorf(codes.InvalidArgument, "name: %.256q is of %s, not of %s", name, collection, k.collection)
	}
	return nil
}

func (k *kind) get(_ context.Context, in, out protoreflect.Message) error {
	o, err := k.find(text(in, "name"))
	if err != nil {
		return err
	}
	out.Set(field(out, k.singular), protoreflect.ValueOfMessage(k.core.Annotator()(o).ProtoReflect()))
	return nil
}

func (k *kind) list(ctx context.Context, in, out protoreflect.Message) error {
	project, err := parent(text(in, "parent"))
	if err != nil {
		return err
	}
	size := int(in.Get(field(in, "page_size")).Int())
	if size < 0 {
		return status.Error(codes.InvalidArgument, "page_size: must not be negative")
	}
	if size == 0 {
		size = 100
	}
	size = min(size, 1000)
	after, err := base64.RawURLEncoding.DecodeString(text(in, "page_token"))
	if err != nil || (len(after) > 0 && !strings.HasPrefix(string(after), "projects/")) {
		return status.Error(codes.InvalidArgument, "page_token: is not one that this server gave")
	}
	list := out.Mutable(field(out, k.plural)).List()
	annotate, who := k.core.Annotator(), CallerOf(ctx)
	// The token is the last name of the page before, so a page stays right when
	// objects come and go between two calls.
	for _, o := range k.core.Snapshot().Listed(k.collection, project) {
		if o.GetName() <= string(after) || !who.MayRead(o.GetName()) {
			continue
		}
		if list.Len() == size {
			last := list.Get(size - 1).Message().Interface().(gateway.Object).GetName()
			token := base64.RawURLEncoding.EncodeToString([]byte(last))
			out.Set(field(out, "next_page_token"), protoreflect.ValueOfString(token))
			break
		}
		list.Append(protoreflect.ValueOfMessage(annotate(o).ProtoReflect()))
	}
	return nil
}

func parent(p string) (string, error) {
	project, ok := strings.CutPrefix(p, "projects/")
	if project == "-" {
		return "", nil
	}
	if _, _, _, err := gateway.KindOf("projects/" + project + "/routes/x"); !ok || err != nil {
		return "", status.Errorf(codes.InvalidArgument, "parent: %.128q must look like projects/default", p)
	}
	return project, nil
}

func (k *kind) create(ctx context.Context, in, out protoreflect.Message) error {
	o, err := k.body(in)
	if err != nil {
		return err
	}
	project, err := parent(text(in, "parent"))
	if err != nil {
		return err
	}
	want := ""
	if id := text(in, protoreflect.Name(string(k.singular)+"_id")); id != "" {
		want = fmt.Sprintf("projects/%s/%s/%s", project, k.collection, id)
	}
	switch {
	case o.GetName() == "" && want == "":
		return status.Errorf(codes.InvalidArgument, "%s_id: or %s.name must be set", k.singular, k.singular)
	case o.GetName() == "":
		setName(o, want)
	default:
		setName(o, gateway.Resolve(project, k.collection, o.GetName()))
		if want != "" && o.GetName() != want {
			return status.Errorf(codes.InvalidArgument, "%s.name: is %q, but parent and %s_id say %q", k.singular, o.GetName(), k.singular, want)
		}
	}
	if !strings.HasPrefix(o.GetName(), "projects/"+project+"/") {
		return status.Errorf(codes.InvalidArgument, "%s.name: %q is not in projects/%s", k.singular, o.GetName(), project)
	}
	return k.write(ctx, Mutation{Mode: Create, Name: o.GetName(), Object: o}, in, out)
}

func (k *kind) update(ctx context.Context, in, out protoreflect.Message) error {
	o, err := k.body(in)
	if err != nil {
		return err
	}
	mode := Update
	if in.Get(field(in, "allow_missing")).Bool() {
		mode = Upsert
	}
	return k.write(ctx, Mutation{Mode: mode, Name: o.GetName(), Object: o, Etag: o.GetMetadata().GetEtag()}, in, out)
}

func (k *kind) delete(ctx context.Context, in, out protoreflect.Message) error {
	return k.write(ctx, Mutation{Mode: Delete, Name: text(in, "name"), Etag: text(in, "etag")}, in, out)
}

// body takes the resource out of a request.
func (k *kind) body(in protoreflect.Message) (gateway.Object, error) {
	f := field(in, k.singular)
	if !in.Has(f) {
		return nil, status.Errorf(codes.InvalidArgument, "%s: must be set", k.singular)
	}
	return proto.Clone(in.Get(f).Message().Interface()).(gateway.Object), nil
}

func setName(o gateway.Object, name string) {
	m := o.ProtoReflect()
	m.Set(m.Descriptor().Fields().ByName("name"), protoreflect.ValueOfString(name))
}

// write does a one-object write and fills the response.
func (k *kind) write(ctx context.Context, mu Mutation, in, out protoreflect.Message) error {
	if err := k.own(mu.Name); err != nil {
		return err
	}
	options, _ := in.Get(field(in, "options")).Message().Interface().(*pb.WriteOptions)
	result, err := k.core.Write(ctx, &Write{
		Mutations: []Mutation{mu}, Options: options, Caller: CallerName(ctx), Source: source(ctx),
	})
	if err != nil {
		return err
	}
	out.Set(field(out, "result"), protoreflect.ValueOfMessage(result.Result.ProtoReflect()))
	if f := field(out, k.singular); f != nil {
		if o := result.Snapshot.Get(mu.Name); o != nil {
			out.Set(f, protoreflect.ValueOfMessage(k.core.Annotator()(o).ProtoReflect()))
		}
	}
	return nil
}
