package functions

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
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
	live atomic.Bool
}

func (s *session) connected() bool { return s.live.Load() }

// keep connects again and again until ctx ends or quit is closed.
func (s *session) keep(ctx context.Context) {
	pause, last := reconnectMin, ""
	for {
		began := time.Now()
		err := s.once(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if time.Since(began) > reconnectMax {
			pause, last = reconnectMin, ""
		}
		if text := err.Error(); text != last { // not the same line for hours
			s.config.Logger.Warn("no stream to the control plane; instances serve on and it is tried again", "error", text)
			last = text
		}
		// Jitter, so that many runners do not come back in one instant.
		select {
		case <-ctx.Done():
			return
		case <-s.quit:
			return
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
		pause = min(2*pause, reconnectMax)
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
	hello := &pb.ConnectRequest{Message: &pb.ConnectRequest_Hello{Hello: &pb.RunnerHello{Runner: s.config.Name}}}
	if err := stream.Send(hello); err != nil {
		return lastError(stream, err)
	}
	received := make(chan error, 1)
	go func() { received <- s.receive(stream) }()
	defer s.live.Store(false)

	var sent *pb.RunnerState
	for {
		if state := s.manager.state(); !proto.Equal(state, sent) {
			if err := stream.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_State{State: state}}); err != nil {
				cancel()
				return errors.Join(err, <-received)
			}
			sent = state
		}
		select {
		case <-s.manager.changed:
		case err := <-received:
			return err
		case <-s.quit:
			return s.finish(stream, received, sent)
		}
	}
}

// finish sends the last state and waits a moment for the control plane to have
// read it.
func (s *session) finish(stream grpc.BidiStreamingClient[pb.ConnectRequest, pb.ConnectResponse], received <-chan error, sent *pb.RunnerState) error {
	if state := s.manager.state(); !proto.Equal(state, sent) {
		if err := stream.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_State{State: state}}); err != nil {
			return nil // it is gone, and so are we
		}
	}
	_ = stream.CloseSend()
	select {
	case <-received:
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
		if !s.live.Swap(true) {
			s.config.Logger.Info("connected to the control plane", "revision", m.GetRevision(), "functions", len(m.GetFunctions()))
		}
		s.manager.apply(m.GetFunctions())
	}
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
