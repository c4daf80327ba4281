// Holds protobuf-java and Netty, with the lines that PROTOCOL.md gives, to every test vector, and says
// what the stock helpers make of the page's probes. See ../README.md for what it prints.
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.UnknownFieldSet;
import io.netty.buffer.ByteBuf;
import io.netty.buffer.ByteBufUtil;
import io.netty.buffer.Unpooled;
import io.netty.channel.embedded.EmbeddedChannel;
import io.netty.handler.codec.DecoderException;
import io.netty.handler.codec.protobuf.ProtobufVarint32FrameDecoder;
import io.netty.handler.codec.protobuf.ProtobufVarint32LengthFieldPrepender;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import tidegate.v1.Notice;
import tidegate.v1.Pong;
import tidegate.v1.Position;
import tidegate.v1.Request;
import tidegate.v1.Response;
import tidegate.v1.Resume;
import tidegate.v1.Room;
import tidegate.v1.Session;

final class Check {
    private static Path vectors;
    private static int checked;

    public static void main(String[] args) throws Exception {
        vectors = Path.of(args[0]);
        for (JsonObject vector : load("requests.json")) request(vector);
        for (JsonObject vector : load("responses.json")) response(vector);
        for (JsonObject vector : load("streams.json")) stream(vector);
        for (JsonObject vector : load("malformed.json")) malformed(vector);
        for (String probe : new String[] {"too_long", "ffffffff0f", "8080808010", "8000", "060802"}) {
            System.out.println("probe java " + probe + " " + probe(probe));
            System.out.println("probe netty " + probe + " " + nettyProbe(probe));
        }
        System.out.println("checked " + checked);
    }

    private static void request(JsonObject vector) throws IOException {
        byte[] frame = bytes(vector, "frame");
        JsonObject fields = vector.getAsJsonObject("request");
        Request.Builder request = Request.newBuilder();
        request.setType(fields.get("type").getAsInt()).setUserId(number(fields, "user_id"));
        request.setToken(fields.get("token").getAsString()).setSequence(number(fields, "sequence"));
        request.setBizData(ByteString.copyFrom(bytes(fields, "biz_data")));
        Request read = Request.parseDelimitedFrom(new ByteArrayInputStream(frame));
        // A field that is not known is kept, so it differs: compare what is known.
        same(vector, request.build(), read.toBuilder().setUnknownFields(UnknownFieldSet.getDefaultInstance()).build());
        if (vector.has("resume")) resume(vector, request.getBizData());
        if (!vector.get("canonical").getAsBoolean()) return;
        ByteArrayOutputStream written = new ByteArrayOutputStream();
        request.build().writeDelimitedTo(written);
        same(vector, hex(frame), hex(written.toByteArray()));
        EmbeddedChannel netty = new EmbeddedChannel(new ProtobufVarint32LengthFieldPrepender());
        netty.writeOutbound(Unpooled.wrappedBuffer(request.build().toByteArray()));
        ByteBuf sent = Unpooled.buffer();
        for (ByteBuf part; (part = netty.readOutbound()) != null; ) sent.writeBytes(part);
        same(vector, hex(frame), ByteBufUtil.hexDump(sent));
    }

    /** An authentication's positions, in both directions. */
    private static void resume(JsonObject vector, ByteString bizData) throws IOException {
        JsonObject resume = vector.getAsJsonObject("resume");
        Resume.Builder wanted = Resume.newBuilder(), read = Resume.newBuilder();
        for (JsonElement element : resume.getAsJsonArray("positions")) {
            JsonObject fields = element.getAsJsonObject();
            Position.Builder position = wanted.addPositionsBuilder().setRoom(fields.get("room").getAsString());
            position.setLog(number(fields, "log")).setOffset(number(fields, "offset"));
            position.setTicket(ByteString.copyFrom(bytes(fields, "ticket")));
        }
        for (Position position : Resume.parseFrom(bizData).getPositionsList()) {
            read.addPositions(position.toBuilder().setUnknownFields(UnknownFieldSet.getDefaultInstance()));
        }
        same(vector, wanted.build(), read.build());
        if (!resume.get("canonical").getAsBoolean()) return;
        same(vector, hex(bizData.toByteArray()), hex(wanted.build().toByteArray()));
    }

    private static void room(JsonObject vector, JsonObject fields, Room read) {
        Room.Builder wanted = Room.newBuilder().setName(fields.get("name").getAsString());
        wanted.setNumber((int) fields.get("number").getAsLong()).setLog(number(fields, "log"));
        wanted.setHead(number(fields, "head")).setRecoveryValue(fields.get("recovery").getAsInt());
        wanted.setTicket(ByteString.copyFrom(bytes(fields, "ticket")));
        same(vector, wanted.build(), read.toBuilder().setUnknownFields(UnknownFieldSet.getDefaultInstance()).build());
    }

    private static void session(JsonObject vector, JsonObject event, Session read) {
        Session.Builder wanted = Session.newBuilder().setSessionId(number(event, "session_id"));
        wanted.setHeartbeatIntervalMs((int) event.get("heartbeat_interval_ms").getAsLong());
        wanted.setServerTimeMs(number(event, "server_time_ms")).setExpiresInMs(number(event, "expires_in_ms"));
        wanted.setIdleTimeoutMs((int) event.get("idle_timeout_ms").getAsLong());
        wanted.setMaxFrameBytes((int) event.get("max_frame_bytes").getAsLong());
        wanted.setMaxFrameToClientBytes((int) event.get("max_frame_to_client_bytes").getAsLong());
        UnknownFieldSet none = UnknownFieldSet.getDefaultInstance();
        same(vector, wanted.build(), read.toBuilder().clearRooms().setUnknownFields(none).build());
        JsonArray rooms = event.getAsJsonArray("rooms");
        same(vector, rooms.size(), read.getRoomsCount());
        for (int i = 0; i < rooms.size(); i++) room(vector, rooms.get(i).getAsJsonObject(), read.getRooms(i));
    }

    private static void response(JsonObject vector) throws IOException {
        byte[] frame = bytes(vector, "frame");
        JsonObject fields = vector.getAsJsonObject("response");
        Response.Builder wanted = Response.newBuilder();
        wanted.setType(fields.get("type").getAsInt()).setStatus(fields.get("status").getAsInt());
        wanted.setBizData(ByteString.copyFrom(bytes(fields, "biz_data")));
        wanted.setSequence(number(fields, "sequence")).setOffset(number(fields, "offset"));
        wanted.setRetryAfterMs(fields.get("retry_after_ms").getAsInt());
        wanted.setRoom((int) fields.get("room").getAsLong());
        Response read = Client.read(new ByteArrayInputStream(frame), Client.MAXIMUM);
        same(vector, wanted.build(), read.toBuilder().setUnknownFields(UnknownFieldSet.getDefaultInstance()).build());
        same(vector, List.of(hex(wanted.getBizData().toByteArray())), List.of(bizData(frame)));
        JsonObject event = vector.getAsJsonObject("event");
        same(vector, event.get("kind").getAsString(), Client.kind(read));
        if (event.has("code")) {
            JsonElement code = event.get("code");
            same(vector, code.isJsonNull() ? null : code.getAsLong(), Client.code(read));
        }
        if (event.has("session_id")) {
            session(vector, event, Session.parseFrom(read.getBizData()));
        } else if (event.has("room")) {
            room(vector, event.getAsJsonObject("room"), Notice.parseFrom(read.getBizData()).getJoined());
        } else if (event.has("name")) {
            same(vector, event.get("name").getAsString(), Notice.parseFrom(read.getBizData()).getLeft());
        } else if (event.has("server_time_ms")) {
            long time = Pong.parseFrom(read.getBizData()).getServerTimeMs();
            same(vector, number(event, "server_time_ms"), time);
        }
    }

    /** What Netty's decoder and parser read as `biz_data`. */
    private static String bizData(byte[] frame) throws InvalidProtocolBufferException {
        List<String> payloads = new ArrayList<>();
        netty(new NettyFrames(Client.MAXIMUM), List.of(frame), payloads);
        ByteString payload = ByteString.copyFrom(HexFormat.of().parseHex(payloads.get(0)));
        return hex(Response.parseFrom(payload).getBizData().toByteArray());
    }

    private static void stream(JsonObject vector) throws IOException {
        int maximum = vector.get("payload_bytes_max").getAsInt();
        List<byte[]> chunks = new ArrayList<>(), bytes = new ArrayList<>();
        List<String> wanted = new ArrayList<>();
        for (JsonElement chunk : vector.getAsJsonArray("chunks")) {
            chunks.add(bytes(chunk.getAsJsonObject(), "hex"));
            chunk.getAsJsonObject().getAsJsonArray("payloads").forEach(p -> wanted.add(p.getAsString()));
        }
        ByteArrayOutputStream all = new ByteArrayOutputStream();
        for (byte[] chunk : chunks) all.write(chunk);
        for (byte one : all.toByteArray()) bytes.add(new byte[] {one});
        boolean refused = vector.get("ends").getAsString().equals("refused");
        for (List<byte[]> cut : List.of(chunks, bytes)) {
            List<String> payloads = new ArrayList<>();
            boolean fails = netty(new NettyFrames(maximum), cut, payloads);
            if (verdict(vector, "netty", refused, fails)) same(vector, wanted, payloads);
        }
        List<String> payloads = new ArrayList<>();
        InputStream in = new OneByOne(all.toByteArray());
        String end;
        try {
            for (Response read; (read = Client.read(in, maximum)) != null; ) {
                payloads.add(hex(read.toByteArray()));
            }
            end = "between frames";
        } catch (EOFException e) {
            end = "inside a frame";
        } catch (IOException e) {
            end = "refused";
        }
        // A Request is no Response: compare how many there are, and what a Response says.
        if (verdict(vector, "java", refused, end.equals("refused"))) same(vector, wanted.size(), payloads.size());
        if (vector.get("direction").getAsString().equals("to_client")) same(vector, wanted, payloads);
        if (!refused) {
            boolean whole = vector.get("incomplete_bytes").getAsInt() == 0;
            same(vector, whole ? "between frames" : "inside a frame", end);
        }
    }

    private static void malformed(JsonObject vector) throws IOException {
        byte[] stream = bytes(vector, "stream");
        int maximum = vector.get("payload_bytes_max").getAsInt();
        boolean toClient = vector.get("direction").getAsString().equals("to_client");
        boolean fails = false;
        try {
            Response read = Client.read(new ByteArrayInputStream(stream), maximum);
            if (read != null) Client.kind(read);
        } catch (IOException e) {
            fails = true;
        }
        List<String> payloads = new ArrayList<>();
        boolean nettyFails = netty(new NettyFrames(maximum), List.of(stream), payloads);
        try {
            if (!payloads.isEmpty()) {
                Client.kind(Response.parseFrom(ByteString.copyFrom(HexFormat.of().parseHex(payloads.get(0)))));
            }
        } catch (InvalidProtocolBufferException e) {
            nettyFails = true;
        }
        if (!toClient && !vector.get("refused_as").getAsString().equals("frame")) return;
        verdict(vector, "java", true, fails);
        verdict(vector, "netty", true, nettyFails);
    }

    /** Whether the reader did as the vector says to the letter; if not, it has to be allowed. */
    private static boolean verdict(JsonObject vector, String stack, boolean refused, boolean fails) {
        checked++;
        if (refused) {
            boolean mayAccept = vector.get("sdk_may_accept").getAsBoolean();
            System.out.println((fails ? "refuses " : "accepts ") + stack + " " + vector.get("name").getAsString());
            if (!fails && !mayAccept) throw new AssertionError(stack + " accepts " + vector);
        } else if (fails) {
            throw new AssertionError(stack + " refuses " + vector);
        }
        return refused == fails;
    }

    /** Whether the decoder refuses what comes; what it hands on is added to `payloads`. */
    private static boolean netty(ProtobufVarint32FrameDecoder decoder, List<byte[]> chunks, List<String> payloads) {
        EmbeddedChannel channel = new EmbeddedChannel(decoder);
        boolean fails = false;
        for (byte[] chunk : chunks) {
            try {
                channel.writeInbound(Unpooled.wrappedBuffer(chunk));
            } catch (DecoderException e) {
                fails = true;
            }
            for (ByteBuf frame; (frame = channel.readInbound()) != null; frame.release()) {
                payloads.add(ByteBufUtil.hexDump(frame));
            }
            if (fails) break;
        }
        return fails;
    }

    private static String probe(String hex) {
        try {
            Response read = Response.parseDelimitedFrom(new ByteArrayInputStream(probeBytes(hex)));
            return outcome(hex, read == null ? "nothing" : hex(read.toByteArray()));
        } catch (IOException e) {
            return "refuses";
        }
    }

    private static String nettyProbe(String hex) {
        List<String> payloads = new ArrayList<>();
        boolean fails = netty(new ProtobufVarint32FrameDecoder(), List.of(probeBytes(hex)), payloads);
        if (fails) return "refuses";
        return payloads.isEmpty() ? "waits" : outcome(hex, payloads.get(0));
    }

    /** A probe is all that the stream holds; `too_long` is a whole frame of one byte too many. */
    private static byte[] probeBytes(String hex) {
        if (!hex.equals("too_long")) return HexFormat.of().parseHex(hex);
        byte[] frame = new byte[3 + Client.MAXIMUM + 1]; // field 3 with 2^20 - 4 bytes
        System.arraycopy(HexFormat.of().parseHex("8180401afdff3f"), 0, frame, 0, 7);
        return frame;
    }

    private static String outcome(String hex, String payload) {
        return payload.isEmpty() ? "empty message" : hex.equals("060802") ? "half a message" : "accepts";
    }

    private static List<JsonObject> load(String file) throws IOException {
        JsonArray all = JsonParser.parseString(Files.readString(vectors.resolve(file)))
                .getAsJsonObject().getAsJsonArray("vectors");
        List<JsonObject> list = new ArrayList<>();
        all.forEach(vector -> list.add(vector.getAsJsonObject()));
        return list;
    }

    private static byte[] bytes(JsonObject vector, String key) {
        if (vector.has(key)) return HexFormat.of().parseHex(vector.get(key).getAsString());
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        for (JsonElement part : vector.getAsJsonArray(key + "_parts")) {
            byte[] bytes = bytes(part.getAsJsonObject(), "hex");
            for (int i = part.getAsJsonObject().get("times").getAsInt(); i > 0; i--) out.writeBytes(bytes);
        }
        return out.toByteArray();
    }

    private static long number(JsonObject object, String key) {
        return Long.parseUnsignedLong(object.get(key).getAsString());
    }

    private static String hex(byte[] bytes) {
        return HexFormat.of().formatHex(bytes);
    }

    private static void same(JsonObject vector, Object wanted, Object found) {
        checked++;
        if (wanted == null ? found != null : !wanted.equals(found)) {
            throw new AssertionError(vector.get("name") + ": " + wanted + " is not " + found);
        }
    }

    /** A stream that gives a byte at a time. */
    private static final class OneByOne extends ByteArrayInputStream {
        OneByOne(byte[] bytes) {
            super(bytes);
        }

        @Override
        public synchronized int read(byte[] into, int offset, int length) {
            return super.read(into, offset, Math.min(length, 1));
        }
    }
}
