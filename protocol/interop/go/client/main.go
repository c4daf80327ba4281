// A client in Go, with protodelim and nothing else: what the author of an SDK writes first. Logs in,
// sends a request, gets a push and a pong, and leaves without losing an answer. Its reader is in ../frame.go.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"

	"interop"
	v1 "interop/tidegate/v1"
)

func run(port, user, token string) error {
	userID, err := strconv.ParseUint(user, 10, 64)
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", "127.0.0.1:"+port, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	reader, waiting, next := bufio.NewReader(conn), map[uint64]bool{}, uint64(1)
	send := func(request *v1.Request) error {
		request.Sequence = next
		waiting[next] = true
		next++
		_, err := protodelim.MarshalTo(conn, request)
		return err
	}
	receive := func() (string, error) {
		response, err := interop.Read(reader, interop.Maximum)
		if err != nil {
			return "", err
		}
		kind, err := interop.Kind(response)
		if err != nil {
			return "", err
		}
		delete(waiting, response.Sequence)
		text := string(response.BizData)
		switch kind {
		case "failed", "goodbye":
			code, _ := interop.Code(response)
			text = strconv.Itoa(int(code))
		case "authenticated", "pong", "joined", "left":
			text = ""
		}
		fmt.Println(strings.TrimSpace(kind + " " + text))
		return kind, nil
	}

	if err := send(&v1.Request{UserId: userID, Token: token}); err != nil {
		return err
	}
	if _, err := receive(); err != nil { // no business before the session
		return err
	}
	for _, kind := range []int32{1, 2, -1, 100} {
		if err := send(&v1.Request{Type: kind, BizData: []byte("hello")}); err != nil {
			return err
		}
	}
	for pushed := false; len(waiting) > 0 || !pushed; { // the push may come before its answer
		kind, err := receive()
		if err != nil {
			return err
		}
		pushed = pushed || kind == "push"
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil { // what was asked is still answered
		return err
	}
	for err == nil {
		_, err = receive()
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	fmt.Println("end")
	return nil
}

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
