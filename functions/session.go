package functions

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pause"
)

// Pauses between two attempts to reach the control plane.
const (
	reconnectMin = 50 * time.Millisecond
	reconnectMax = 2 * time.Second
)

// session keeps one stream to the control plane.
type session struct {
	config  Config
	manager *manager
	// quit asks for the last state to be sent and the stream to be closed.
	quit chan struct{}
}

// keep connects again and again until ctx ends or quit is closed.
func (s *session) keep(ctx context.Context) {
	again, last := pause.Between(reconnectMin, reconnectMax), ""
	for {
		began := time.Now()
		err := s.once(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if time.Since(began) > reconnectMax {
			again.Reset()
			last = ""
		}
		if text := err.Error(); text != last { // not the same line for hours
			s.config.Logger.Warn("no stream to the control plane; instances serve on and it is tried again", "error", text)
			last = text
		}
		select {
		case <-ctx.Done():
			return
		case <-s.quit:
			return
		case <-time.After(again.Next()):
		}
		s.config.Conn.ResetConnectBackoff() // ours is shorter than gRPC's
	}
}

// once runs one stream. It returns nil when quit was closed.
func (s *session) once(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := pb.NewRunnerServiceClient(s.config.Conn).Connect(ctx)
	if err != nil {
		return err
	}
	hello := &pb.ConnectRequest{Message: &pb.ConnectRequest_Hello{Hello: &pb.RunnerHello{
		Runner: s.config.Name, SignOfLife: durationpb.New(sampleEvery),
	}}}
	if err := stream.Send(hello); err != nil {
		return lastError(stream, err)
	}
	received := make(chan error, 1)
	go func() { received <- s.receive(stream) }()
	defer s.manager.lost()
	s.manager.unlisting.begin()
	stats := time.NewTicker(sampleEvery)
	defer stats.Stop()

	t := &teller{m: s.manager}
	message := t.state()
	for {
		if message != nil {
			if err := stream.Send(message); err != nil {
				cancel()
				return errors.Join(err, <-received)
			}
		}
		select {
		case <-s.manager.changed:
			message = t.state()
		case <-s.manager.logs.ready:
			message = t.logs()
		case <-stats.C:
			message = t.stats()
		case err := <-received:
			return err
		case <-s.quit:
			return s.finish(stream, received, t)
		}
	}
}

// finish sends the last state and waits a moment for the control plane to have
// read it.
func (s *session) finish(stream grpc.BidiStreamingClient[pb.ConnectRequest, pb.ConnectResponse], received <-chan error, t *teller) error {
	for _, m := range []*pb.ConnectRequest{t.stats(), t.state()} {
		if m == nil {
			continue
		}
		if err := stream.Send(m); err != nil {
			return nil // it is gone, and so are we
		}
	}
	_ = stream.CloseSend()
	select {
	case <-received: //nolint:errcheck // the control plane went, or read it
	case <-time.After(500 * time.Millisecond):
	}
	return nil
}

func (s *session) receive(stream grpc.BidiStreamingClient[pb.ConnectRequest, pb.ConnectResponse]) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the control plane closed the stream")
		}
		if err != nil {
			return err
		}
		if !s.manager.live.Swap(true) {
			s.config.Logger.Info("connected to the control plane", "revision", m.GetRevision(), "functions", len(m.GetFunctions()))
		}
		if l := m.GetLogs(); l != nil {
			s.manager.logs.subscribe(l.GetFunctions())
		}
		if !m.GetFunctionsUnchanged() {
			s.manager.apply(m.GetFunctions(), secretsOf(m), deployed(m), m.GetRevision())
		}
		s.manager.unlisting.acknowledged(m.GetAcknowledgedSequence())
	}
}

// teller makes the messages of one stream.
type teller struct {
	m        *manager
	sent     *pb.RunnerState
	sequence uint64
}

// state is the state when it differs from the one before, else nil.
func (t *teller) state() *pb.ConnectRequest {
	state, leaving := t.m.unlisting.state(t.m.state)
	defer func() { t.m.unlisting.told(leaving, t.sequence) }()
	state.Sequence = t.sequence
	if t.sent != nil && proto.Equal(state, t.sent) {
		return nil
	}
	t.sequence++
	state.Sequence = t.sequence
	t.sent = state
	return &pb.ConnectRequest{Message: &pb.ConnectRequest_State{State: state}}
}

func (t *teller) logs() *pb.ConnectRequest {
	lines := t.m.logs.take()
	if len(lines.GetLines()) == 0 {
		return nil
	}
	return &pb.ConnectRequest{Message: &pb.ConnectRequest_Logs{Logs: lines}}
}

// stats is also the sign of life, so it is told whatever it holds.
func (t *teller) stats() *pb.ConnectRequest {
	stats := t.m.stats()
	return &pb.ConnectRequest{Message: &pb.ConnectRequest_Stats{Stats: stats}}
}

// lastError returns the status of a stream whose Send failed, which only Recv
// tells.
func lastError(stream grpc.BidiStreamingClient[pb.ConnectRequest, pb.ConnectResponse], err error) error {
	if errors.Is(err, io.EOF) {
		if _, e := stream.Recv(); e != nil {
			return e
		}
	}
	return fmt.Errorf("send: %w", err)
}
