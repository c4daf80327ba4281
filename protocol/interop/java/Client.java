// A client in Java, with protobuf-java and nothing else: what the author of an SDK writes first.
// Logs in, sends a request, gets a push and a pong, and leaves without losing an answer.
import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.util.HashMap;
import java.util.Map;
import tidegate.v1.Notice;
import tidegate.v1.Pong;
import tidegate.v1.Request;
import tidegate.v1.Response;
import tidegate.v1.Session;

final class Client {
    /** Longest payload from a gateway, in bytes. */
    static final int MAXIMUM = 1024 * 1024;

    // PROTOCOL.md: java
    static Response read(InputStream in, int maximum) throws IOException {
        long length = 0;
        for (int shift = 0, b = 0x80; b >= 0x80; shift += 7) {
            b = in.read();
            if (b < 0 && shift == 0) return null; // the end of the stream
            if (b < 0) throw new EOFException("the stream ends inside a length");
            if (shift == 28 && b >= 0x80) throw new IOException("malformed length");
            length |= (long) (b & 0x7f) << shift;
        }
        if (length > maximum) throw new IOException("a frame of " + length + " bytes");
        byte[] payload = new byte[(int) length];
        new DataInputStream(in).readFully(payload); // EOFException: the stream ends inside a frame
        return Response.parseFrom(payload);
    }
    // end

    /** What a response is to a client. */
    static String kind(Response response) throws InvalidProtocolBufferException {
        if (response.getStatus() != 1) return response.getType() == 0 && response.getSequence() == 0 ? "goodbye" : "failed";
        if (response.getType() == 0) Session.parseFrom(response.getBizData());
        if (response.getType() == -1) Pong.parseFrom(response.getBizData());
        Notice notice = response.getType() == -2 ? Notice.parseFrom(response.getBizData()) : Notice.getDefaultInstance();
        if (response.getType() < -1) return notice.hasJoined() ? "joined" : notice.hasLeft() ? "left" : "ignored";
        if (response.getType() == -1) return "pong";
        if (response.getType() == 0) return "authenticated";
        return response.getSequence() == 0 ? "push" : "answer";
    }

    /** The error code of a failure; null where it holds none. */
    static Long code(Response response) {
        ByteString data = response.getBizData();
        return data.size() == 4 ? data.asReadOnlyByteBuffer().getInt() & 0xffffffffL : null;
    }

    public static void main(String[] args) throws Exception {
        try (Socket socket = new Socket()) {
            socket.connect(new InetSocketAddress("127.0.0.1", Integer.parseInt(args[0])), 10_000);
            socket.setSoTimeout(30_000);
            socket.setTcpNoDelay(true);
            Request login = Request.newBuilder().setUserId(Long.parseUnsignedLong(args[1])).setToken(args[2]).build();
            long sequence = 0;
            send(socket, login, ++sequence);
            show(read(socket.getInputStream(), MAXIMUM)); // no business before the session
            Map<Long, Request> waiting = new HashMap<>();
            for (int type : new int[] {1, 2, -1, 100}) {
                ByteString data = ByteString.copyFromUtf8("hello");
                Request request = Request.newBuilder().setType(type).setBizData(data).build();
                waiting.put(++sequence, request);
                send(socket, request, sequence);
            }
            boolean pushed = false;
            while (!waiting.isEmpty() || !pushed) { // the push may come before its answer
                Response response = read(socket.getInputStream(), MAXIMUM);
                if (response == null) throw new EOFException("the gateway has closed");
                pushed |= kind(response).equals("push");
                waiting.remove(response.getSequence());
                show(response);
            }
            socket.shutdownOutput(); // half-close: what was asked is still answered
            while (read(socket.getInputStream(), MAXIMUM) != null) {}
            System.out.println("end");
        }
    }

    private static void send(Socket socket, Request request, long sequence) throws IOException {
        request.toBuilder().setSequence(sequence).build().writeDelimitedTo(socket.getOutputStream());
    }

    private static void show(Response response) throws IOException {
        String what = kind(response), text = response.getBizData().toStringUtf8();
        if (what.equals("failed") || what.equals("goodbye")) text = String.valueOf(code(response));
        else if (!what.equals("answer") && !what.equals("push")) text = "";
        System.out.println((what + " " + text).trim());
    }
}
