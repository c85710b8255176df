// Command catalog is an ordinary HTTP server, as one would put into a container:
// it reads PORT and answers a shop's products as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

type product struct {
	ID    string  `json:"id"`
	Name  string  `json:"name"`
	Price float64 `json:"price"`
}

var products = []product{
	{"kettle", "Copper kettle", 49.50},
	{"tap", "Brass tap", 31.00},
	{"hose", "Garden hose, 25 m", 24.90},
}

func main() {
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /catalog", list)
	mux.HandleFunc("GET /catalog/{id}", one)
	server := &http.Server{Addr: net.JoinHostPort(os.Getenv("HOST"), port), Handler: mux, ReadHeaderTimeout: 10 * time.Second}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
	}()
	log.Printf("catalog listens on %s", server.Addr)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}

// list answers all products, or those with ?q= in their name.
func list(w http.ResponseWriter, r *http.Request) {
	found := []product{}
	q := strings.ToLower(r.URL.Query().Get("q"))
	for _, p := range products {
		if strings.Contains(strings.ToLower(p.Name), q) {
			found = append(found, p)
		}
	}
	answer(w, r, http.StatusOK, map[string]any{"products": found})
}

func one(w http.ResponseWriter, r *http.Request) {
	for _, p := range products {
		if p.ID == r.PathValue("id") {
			answer(w, r, http.StatusOK, map[string]any{"product": p})
			return
		}
	}
	answer(w, r, http.StatusNotFound, map[string]any{"error": "no product " + r.PathValue("id")})
}

// answer adds the trace context that the request came with.
func answer(w http.ResponseWriter, r *http.Request, status int, document map[string]any) {
	log.Printf("%s %s %d", r.Method, r.URL.Path, status)
	document["traceparent"] = r.Header.Get("traceparent")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(document)
}
