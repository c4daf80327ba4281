// Package interop has what the client and the check share.
package interop

import (
	"bufio"
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	v1 "interop/tidegate/v1"
)

// Maximum is the longest payload from a gateway, in bytes.
const Maximum = 1 << 20

// PROTOCOL.md: go
func Read(reader *bufio.Reader, maximum int64) (*v1.Response, error) {
	response := new(v1.Response)
	options := protodelim.UnmarshalOptions{MaxSize: maximum} // without it 4 MiB
	err := options.UnmarshalFrom(reader, response)           // io.EOF: the end of the stream
	return response, err
}

// end

// Kind says what a response is to a client.
func Kind(response *v1.Response) (string, error) {
	asked := response.Type != 0 || response.Sequence != 0
	switch {
	case response.Status != 1 && asked:
		return "failed", nil
	case response.Status != 1:
		return "goodbye", nil
	case response.Type == -2:
		notice := new(v1.Notice)
		err := proto.Unmarshal(response.BizData, notice)
		switch notice.What.(type) {
		case *v1.Notice_Joined:
			return "joined", err
		case *v1.Notice_Left:
			return "left", err
		}
		return "ignored", err
	case response.Type < -1:
		return "ignored", nil
	case response.Type == -1:
		return "pong", proto.Unmarshal(response.BizData, new(v1.Pong))
	case response.Type == 0:
		return "authenticated", proto.Unmarshal(response.BizData, new(v1.Session))
	case response.Sequence == 0:
		return "push", nil
	}
	return "answer", nil
}

// Code is the error code of a failure, and whether it holds one.
func Code(response *v1.Response) (uint32, bool) {
	if len(response.BizData) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(response.BizData), true
}
