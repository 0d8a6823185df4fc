// SPDX-License-Identifier: Apache-2.0

// tsi_server: net/http and net.Listen in a guest.
//
//	tsi_server PORT CONNECTIONS
//
// Says "ready PORT", answers each request with the client's address and its own, and
// ends after so many.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
)

func main() {
	want, _ := strconv.ParseInt(os.Args[2], 10, 64)
	listener, err := net.Listen("tcp", ":"+os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready", listener.Addr().(*net.TCPAddr).Port)
	done := make(chan bool)
	var served atomic.Int64
	handler := func(w http.ResponseWriter, r *http.Request) {
		local := r.Context().Value(http.LocalAddrContextKey)
		w.Header().Set("Connection", "close")
		fmt.Fprintf(w, "%s %s\n", r.RemoteAddr, local)
	}
	server := &http.Server{Handler: http.HandlerFunc(handler)}
	server.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed && served.Add(1) == want {
			close(done)
		}
	}
	go server.Serve(listener)
	<-done
}
