// SPDX-License-Identifier: Apache-2.0

// What Go programs do with TCP, in a static binary: its runtime makes the system
// calls itself, registers every socket with epoll and connects without blocking.
//
//	tsi_client_go IPV4
//
// The peer, port by port: 7007 echoes, 8080 speaks HTTP, 8081 refuses, 9999 never
// answers. Prints "ok NAME" or "FAIL NAME: WHY"; the last line counts.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

var host string

func at(port string) string { return net.JoinHostPort(host, port) }

// echo sends a message and wants it back.
func echo(conn net.Conn, message string) error {
	if _, err := conn.Write([]byte(message)); err != nil {
		return err
	}
	buf := make([]byte, len(message))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err
	}
	if string(buf) != message {
		return fmt.Errorf("echo said %q", buf)
	}
	return nil
}

func dial() error {
	conn, err := net.Dial("tcp", at("7007"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if conn.RemoteAddr().String() != at("7007") {
		return fmt.Errorf("remote address is %v", conn.RemoteAddr())
	}
	if conn.LocalAddr().(*net.TCPAddr).IP.IsUnspecified() {
		return errors.New("no local address")
	}
	return echo(conn, "ping")
}

func wantErrno(err error, errno syscall.Errno) error {
	if !errors.Is(err, errno) {
		return fmt.Errorf("%v, not %v", err, errno)
	}
	return nil
}

func refused() error {
	_, err := net.Dial("tcp", at("8081"))
	return wantErrno(err, syscall.ECONNREFUSED)
}

func unreachable() error {
	_, err := net.Dial("tcp", "198.51.100.1:80")
	return wantErrno(err, syscall.EHOSTUNREACH)
}

func dialTimeout() error {
	_, err := net.DialTimeout("tcp", at("9999"), 300*time.Millisecond)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		return fmt.Errorf("%v, not a timeout", err)
	}
	if errors.Is(err, syscall.ETIMEDOUT) {
		return fmt.Errorf("%v: the connect's own", err)
	}
	return nil
}

func readDeadline() error {
	conn, err := net.Dial("tcp", at("7007"))
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err = conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%v, not a timeout", err)
	}
	conn.SetReadDeadline(time.Time{})
	return echo(conn, "late")
}

func closeWrite() error {
	conn, err := net.Dial("tcp", at("7007"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err = conn.Write([]byte("last words")); err != nil {
		return err
	}
	if err = conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	data, err := io.ReadAll(conn)
	if err == nil && string(data) != "last words" {
		err = fmt.Errorf("read %q", data)
	}
	return err
}

func get() error {
	for i := 0; i < 5; i++ {
		answer, err := http.Get("http://" + at("8080") + "/")
		if err != nil {
			return err
		}
		data, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != 200 || len(data) == 0 {
			return fmt.Errorf("%v %d %q", err, answer.StatusCode, data)
		}
	}
	return nil
}

func concurrent() error {
	var group sync.WaitGroup
	errs := make(chan error, 200)
	for i := 0; i < 200; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			if err := dial(); err != nil {
				errs <- err
			}
		}()
	}
	group.Wait()
	close(errs)
	return <-errs
}

func loopbackServer() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	return echo(conn, "inside")
}

func main() {
	host = os.Args[1]
	checks := []struct {
		name string
		run  func() error
	}{
		{"dial", dial}, {"refused", refused}, {"unreachable", unreachable},
		{"dial_timeout", dialTimeout}, {"read_deadline", readDeadline},
		{"close_write", closeWrite}, {"http_get", get}, {"concurrent", concurrent},
		{"loopback_server", loopbackServer},
	}
	passed := 0
	for _, check := range checks {
		if err := check.run(); err != nil {
			fmt.Printf("FAIL %s: %v\n", check.name, err)
			continue
		}
		fmt.Printf("ok %s\n", check.name)
		passed++
	}
	fmt.Printf("%d/%d\n", passed, len(checks))
	if passed != len(checks) {
		os.Exit(1)
	}
}
