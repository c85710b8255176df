package store

import (
	"fmt"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// dial makes the client of an external etcd. It connects when it is first used.
func dial(o Options) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints:            o.Endpoints,
		TLS:                  o.TLS,
		DialTimeout:          o.RequestTimeout,
		DialKeepAliveTime:    30 * time.Second,
		DialKeepAliveTimeout: 10 * time.Second,
		Logger:               zapOver(o.Logger.With(slog.String("component", "etcd"))),
	})
	if err != nil {
		return nil, fmt.Errorf("store: etcd endpoints %v: %w", o.Endpoints, err)
	}
	return c, nil
}
