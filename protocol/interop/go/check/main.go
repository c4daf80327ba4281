// Holds Go's protodelim, with the lines that PROTOCOL.md gives, to every test vector, and says what the
// stock helper makes of the page's probes. See ../../README.md for what it prints.
package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing/iotest"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"interop"
	v1 "interop/tidegate/v1"
)

type part struct {
	Hex   string
	Times int
}

type fields struct {
	Type         int32
	Status       uint32
	UserID       string `json:"user_id"`
	Token        string
	BizData      string `json:"biz_data"`
	BizDataParts []part `json:"biz_data_parts"`
	Sequence     string
	RetryAfterMs uint32 `json:"retry_after_ms"`
	Offset       string
	Room         uint32
}

type room struct {
	Name     string
	Number   uint32
	Log      string
	Head     string
	Recovery int32
	Ticket   string
}

type resume struct {
	Canonical bool
	Positions []struct{ Room, Log, Offset, Ticket string }
}

type event struct {
	Kind                string
	Code                json.RawMessage
	SessionID           string `json:"session_id"`
	HeartbeatIntervalMs uint32 `json:"heartbeat_interval_ms"`
	ServerTimeMs        string `json:"server_time_ms"`
	IdleTimeoutMs       uint32 `json:"idle_timeout_ms"`
	MaxFrameBytes       uint32 `json:"max_frame_bytes"`
	MaxFrameToClient    uint32 `json:"max_frame_to_client_bytes"`
	ExpiresInMs         string `json:"expires_in_ms"`
	Rooms               []room
	Room                room
	Name                string
}

type chunk struct {
	Hex      string
	Payloads []string
}

type vector struct {
	Name            string
	Canonical       bool
	Frame           string
	FrameParts      []part `json:"frame_parts"`
	Request         fields
	Resume          *resume
	Response        fields
	Event           event
	Direction       string
	PayloadBytesMax int64 `json:"payload_bytes_max"`
	Chunks          []chunk
	Ends            string
	IncompleteBytes int `json:"incomplete_bytes"`
	Stream          string
	RefusedAs       string `json:"refused_as"`
	SdkMayAccept    bool   `json:"sdk_may_accept"`
}

var checked int

func load(file string) []vector {
	text, err := os.ReadFile(filepath.Join(os.Args[1], file))
	must(err)
	var all struct{ Vectors []vector }
	must(json.Unmarshal(text, &all))
	return all.Vectors
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func unhex(text string, parts []part) []byte {
	data, err := hex.DecodeString(text)
	must(err)
	for _, part := range parts {
		data = append(data, bytes.Repeat(unhex(part.Hex, nil), part.Times)...)
	}
	return data
}

func number(text string) uint64 {
	if text == "" {
		return 0
	}
	value, err := strconv.ParseUint(text, 10, 64)
	must(err)
	return value
}

func same(v vector, wanted, found any) {
	checked++
	if fmt.Sprint(wanted) != fmt.Sprint(found) {
		panic(fmt.Sprintf("%s: %v is not %v", v.Name, wanted, found))
	}
}

func sameMessage(v vector, wanted, found proto.Message) {
	checked++
	found.ProtoReflect().SetUnknown(nil)
	if !proto.Equal(wanted, found) {
		panic(fmt.Sprintf("%s: %v is not %v", v.Name, wanted, found))
	}
}

// verdict says whether the reader did as the vector says to the letter; if not, it has to be allowed.
func verdict(v vector, refused, fails bool) bool {
	checked++
	if refused {
		word := map[bool]string{true: "refuses", false: "accepts"}[fails]
		fmt.Println(word, "go", v.Name)
		if !fails && !v.SdkMayAccept {
			panic("accepts " + v.Name)
		}
	} else if fails {
		panic("refuses " + v.Name)
	}
	return refused == fails
}

func requests() {
	for _, v := range load("requests.json") {
		frame := unhex(v.Frame, v.FrameParts)
		wanted := &v1.Request{
			Type: v.Request.Type, UserId: number(v.Request.UserID), Token: v.Request.Token,
			BizData:  unhex(v.Request.BizData, v.Request.BizDataParts),
			Sequence: number(v.Request.Sequence),
		}
		found := new(v1.Request)
		must(protodelim.UnmarshalFrom(bufio.NewReader(bytes.NewReader(frame)), found))
		sameMessage(v, wanted, found)
		if v.Canonical {
			var written bytes.Buffer
			_, err := protodelim.MarshalTo(&written, wanted)
			must(err)
			same(v, hex.EncodeToString(frame), hex.EncodeToString(written.Bytes()))
		}
		if v.Resume != nil {
			positions(v, wanted.BizData)
		}
	}
}

// positions holds an authentication's positions to a vector, in both directions.
func positions(v vector, bizData []byte) {
	wanted := new(v1.Resume)
	for _, p := range v.Resume.Positions {
		wanted.Positions = append(wanted.Positions, &v1.Position{
			Room: p.Room, Log: number(p.Log), Offset: number(p.Offset), Ticket: unhex(p.Ticket, nil),
		})
	}
	found := new(v1.Resume)
	must(proto.Unmarshal(bizData, found))
	for _, position := range found.Positions {
		position.ProtoReflect().SetUnknown(nil)
	}
	sameMessage(v, wanted, found)
	if v.Resume.Canonical {
		written, err := proto.Marshal(wanted)
		must(err)
		same(v, hex.EncodeToString(bizData), hex.EncodeToString(written))
	}
}

// sameRoom holds a room to a vector's, and forgets the fields that are not known.
func sameRoom(v vector, wanted room, found *v1.Room) {
	sameMessage(v, &v1.Room{
		Name: wanted.Name, Number: wanted.Number, Log: number(wanted.Log), Head: number(wanted.Head),
		Recovery: v1.Recovery(wanted.Recovery), Ticket: unhex(wanted.Ticket, nil),
	}, found)
}

func sameSession(v vector, found *v1.Session) {
	same(v, len(v.Event.Rooms), len(found.Rooms))
	for i, wanted := range v.Event.Rooms {
		sameRoom(v, wanted, found.Rooms[i])
	}
	found.Rooms = nil
	sameMessage(v, &v1.Session{
		SessionId: number(v.Event.SessionID), HeartbeatIntervalMs: v.Event.HeartbeatIntervalMs,
		ServerTimeMs: number(v.Event.ServerTimeMs), IdleTimeoutMs: v.Event.IdleTimeoutMs,
		MaxFrameBytes: v.Event.MaxFrameBytes, MaxFrameToClientBytes: v.Event.MaxFrameToClient,
		ExpiresInMs: number(v.Event.ExpiresInMs),
	}, found)
}

func responses() {
	for _, v := range load("responses.json") {
		frame := unhex(v.Frame, v.FrameParts)
		found, err := interop.Read(bufio.NewReader(bytes.NewReader(frame)), interop.Maximum)
		must(err)
		r := v.Response
		wanted := &v1.Response{
			Type: r.Type, Status: r.Status, BizData: unhex(r.BizData, r.BizDataParts),
			Sequence: number(r.Sequence), RetryAfterMs: r.RetryAfterMs, Offset: number(r.Offset), Room: r.Room,
		}
		sameMessage(v, wanted, found)
		kind, err := interop.Kind(found)
		must(err)
		same(v, v.Event.Kind, kind)
		if v.Event.Code != nil {
			code, has := interop.Code(found)
			text := map[bool]string{true: strconv.Itoa(int(code)), false: "null"}[has]
			same(v, string(v.Event.Code), text)
		}
		session, pong, notice := new(v1.Session), new(v1.Pong), new(v1.Notice)
		switch kind {
		case "authenticated":
			must(proto.Unmarshal(found.BizData, session))
			sameSession(v, session)
		case "pong":
			must(proto.Unmarshal(found.BizData, pong))
			same(v, number(v.Event.ServerTimeMs), pong.ServerTimeMs)
		case "joined":
			must(proto.Unmarshal(found.BizData, notice))
			sameRoom(v, v.Event.Room, notice.GetJoined())
		case "left":
			must(proto.Unmarshal(found.BizData, notice))
			same(v, v.Event.Name, notice.GetLeft())
		}
	}
}

func streams() {
	for _, v := range load("streams.json") {
		var stream []byte
		wanted := []string{}
		for _, chunk := range v.Chunks {
			stream = append(stream, unhex(chunk.Hex, nil)...)
			wanted = append(wanted, chunk.Payloads...)
		}
		for _, source := range []io.Reader{bytes.NewReader(stream), iotest.OneByteReader(bytes.NewReader(stream))} {
			reader := bufio.NewReader(source)
			payloads := []string{}
			var err error
			for err == nil {
				var found *v1.Response
				if found, err = interop.Read(reader, v.PayloadBytesMax); err == nil {
					payload, err := proto.Marshal(found)
					must(err)
					payloads = append(payloads, hex.EncodeToString(payload))
				}
			}
			refused, atEnd := v.Ends == "refused", errors.Is(err, io.EOF)
			cut := errors.Is(err, io.ErrUnexpectedEOF)
			if verdict(v, refused, !atEnd && !cut) {
				// A Request is no Response: compare how many there are, and what a Response says.
				same(v, len(wanted), len(payloads))
				if v.Direction == "to_client" {
					same(v, wanted, payloads)
				}
			}
			if !refused {
				same(v, v.IncompleteBytes == 0, atEnd)
			}
		}
	}
}

func malformed() {
	for _, v := range load("malformed.json") {
		stream := bufio.NewReader(bytes.NewReader(unhex(v.Stream, nil)))
		found, err := interop.Read(stream, v.PayloadBytesMax)
		if err == nil {
			_, err = interop.Kind(found)
		}
		if v.Direction == "to_client" || v.RefusedAs == "frame" {
			verdict(v, true, err != nil)
		}
	}
}

func probes() {
	for _, probe := range []string{"too_long", "ffffffff0f", "8080808010", "8000", "060802"} {
		// too_long is a whole frame of one byte too many.
		stream := append(unhex("8180401afdff3f", nil), make([]byte, interop.Maximum-3)...)
		if probe != "too_long" {
			stream = unhex(probe, nil)
		}
		found := new(v1.Response)
		outcome := "accepts"
		if err := protodelim.UnmarshalFrom(bufio.NewReader(bytes.NewReader(stream)), found); err != nil {
			outcome = "refuses"
		} else if probe == "060802" {
			outcome = "half a message"
		} else if proto.Equal(found, new(v1.Response)) {
			outcome = "empty message"
		}
		fmt.Println("probe go", probe, outcome)
	}
}

func main() {
	requests()
	responses()
	streams()
	malformed()
	probes()
	fmt.Println("checked", checked)
}
