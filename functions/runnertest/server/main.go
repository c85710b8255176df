// Command server is the function that runnertest has runners run. By the
// environment that it finds it is a server on PORT, a custom handler for Azure
// Functions or a bootstrap for the AWS Lambda Runtime API. It needs the standard
// library only and no file beside it, so that it runs wherever a runner puts it.
//
// Its own environment: GREETING is what it answers, DELAY how long (a Go duration)
// it waits before it listens, FAIL a last line after which it ends with status 3
// instead.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	if text := os.Getenv("FAIL"); text != "" {
		fmt.Fprintln(os.Stderr, text)
		os.Exit(3)
	}
	if d, err := time.ParseDuration(os.Getenv("DELAY")); err == nil {
		time.Sleep(d)
	}
	var err error
	if api := os.Getenv("AWS_LAMBDA_RUNTIME_API"); api != "" {
		err = lambda("http://" + api + "/2018-06-01/runtime/invocation/")
	} else {
		port := cmp.Or(os.Getenv("PORT"), os.Getenv("FUNCTIONS_CUSTOMHANDLER_PORT"))
		err = http.ListenAndServe(net.JoinHostPort("", port), http.HandlerFunc(serve))
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// serve prints the path of each request and answers it:
//
//	/status/500   with that status
//	/exit         not at all: it ends
//	/read?path=…  with 200 when the file can be read, else 404
//	others        with GREETING
func serve(w http.ResponseWriter, r *http.Request) {
	fmt.Println("request", r.URL.Path)
	code := http.StatusOK
	switch first, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); first {
	case "status":
		if n, err := strconv.Atoi(rest); err == nil && n >= 200 && n < 600 {
			code = n
		}
	case "exit":
		os.Exit(4)
	case "read":
		if _, err := os.ReadFile(r.URL.Query().Get("path")); err != nil {
			code = http.StatusNotFound
		}
	}
	w.WriteHeader(code)
	_, _ = io.WriteString(w, os.Getenv("GREETING"))
}

// lambda answers events until the Runtime API fails.
func lambda(api string) error {
	answer, err := json.Marshal(map[string]any{"statusCode": http.StatusOK, "body": os.Getenv("GREETING")})
	if err != nil {
		return err
	}
	for {
		event, err := http.Get(api + "next")
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, event.Body)
		event.Body.Close()
		id := event.Header.Get("Lambda-Runtime-Aws-Request-Id")
		if id == "" {
			return errors.New("the Runtime API gives an event without an id")
		}
		taken, err := http.Post(api+id+"/response", "application/json", bytes.NewReader(answer))
		if err != nil {
			return err
		}
		taken.Body.Close()
	}
}
