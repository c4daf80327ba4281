// Netty's decoder with what it lacks.
import io.netty.buffer.ByteBuf;
import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.CorruptedFrameException;
import io.netty.handler.codec.protobuf.ProtobufVarint32FrameDecoder;
import java.util.List;

// PROTOCOL.md: netty
final class NettyFrames extends ProtobufVarint32FrameDecoder {
    private final int maximum;

    NettyFrames(int maximum) {
        this.maximum = maximum;
    }

    @Override
    protected void decode(ChannelHandlerContext ctx, ByteBuf in, List<Object> out) throws Exception {
        long length = 0;
        for (int i = 0, b = 0x80; b >= 0x80; i++) {
            if (i == in.readableBytes()) return; // the length is cut: wait
            b = in.getUnsignedByte(in.readerIndex() + i);
            if (i == 4 && b >= 0x80) throw new CorruptedFrameException("malformed length");
            length |= (long) (b & 0x7f) << (7 * i);
        }
        if (length > maximum) throw new CorruptedFrameException("a frame of " + length + " bytes");
        super.decode(ctx, in, out);
    }
}
// end
