// Command hello is a server with a known start time, to look at cold starts: it
// takes START_TIME (such as 300ms) before it listens on PORT, says so, and answers
// every request with how long its process has been there.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	began := time.Now()
	if d, err := time.ParseDuration(os.Getenv("START_TIME")); err == nil {
		time.Sleep(d)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("listening")
	err = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "hello after %s, %d bytes\n", time.Since(began).Round(time.Millisecond), n)
	}))
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
