// What Go programs do with UDP and names, by Go's own resolver.
//
//	udp_client_go IPV4
//
// The peer is as for udp/main.c; names are test_tsi_udp.py's.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"sort"
	"strings"
	"time"
)

// How long to wait for what has to come; programs.py sets it.
var limit = "120s"

var wait time.Duration

var host string

func lookup(name, expected string) error {
	resolver := &net.Resolver{PreferGo: true}
	found, err := resolver.LookupHost(context.Background(), name)
	sort.Strings(found)
	if err == nil && strings.Join(found, " ") != expected {
		err = fmt.Errorf("%s: %v", name, found)
	}
	return err
}

func checkService() error   { return lookup("web.default.svc.cluster.local", "10.96.0.10") }
func checkForwarded() error { return lookup("one.example", "192.0.2.1 2001:db8::1") }
func checkOverTCP() error   { return lookup("big.example", bigAddresses()) }

func checkUnknown() error {
	_, err := (&net.Resolver{PreferGo: true}).LookupHost(context.Background(), "no.example")
	if failed, ok := err.(*net.DNSError); !ok || !failed.IsNotFound {
		return fmt.Errorf("%v", err)
	}
	return nil
}

func bigAddresses() string {
	var all []string
	for i := 0; i < 100; i++ {
		all = append(all, fmt.Sprintf("10.1.0.%d", i))
	}
	sort.Strings(all)
	return strings.Join(all, " ")
}

func checkDialed() error {
	conn, err := net.Dial("udp", host+":7007")
	if err != nil {
		return err
	}
	defer conn.Close()
	if conn.RemoteAddr().String() != host+":7007" {
		return fmt.Errorf("%v", conn.RemoteAddr())
	}
	conn.SetDeadline(time.Now().Add(wait))
	if _, err = conn.Write([]byte("ping")); err != nil {
		return err
	}
	buf := make([]byte, 16)
	n, err := conn.Read(buf)
	if err == nil && string(buf[:n]) != "ping" {
		err = fmt.Errorf("%q", buf[:n])
	}
	return err
}

func checkListening() error {
	conn, err := net.ListenPacket("udp", ":0")
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(wait))
	for _, port := range []int{7007, 7008} {
		peer := &net.UDPAddr{IP: net.ParseIP(host), Port: port}
		if _, err = conn.WriteTo([]byte("to"), peer); err != nil {
			return err
		}
		buf := make([]byte, 16)
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		if n != 2 || from.String() != peer.String() {
			return fmt.Errorf("%d bytes from %v", n, from)
		}
	}
	return nil
}

func main() {
	host = os.Args[1]
	wait, _ = time.ParseDuration(limit)
	failed := 0
	for name, check := range map[string]func() error{
		"service": checkService, "forwarded": checkForwarded, "over TCP": checkOverTCP,
		"unknown": checkUnknown, "dialed": checkDialed, "listening": checkListening,
	} {
		if err := check(); err != nil {
			fmt.Printf("FAIL %s: %v\n", name, err)
			failed++
		}
	}
	if failed > 0 {
		os.Exit(1)
	}
}
