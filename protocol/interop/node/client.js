// A client in JavaScript on Node, with protobufjs and nothing else: what the author of an SDK writes
// first. Logs in, sends a request, gets a push and a pong, and leaves without losing an answer.
"use strict";
const net = require("net");
const path = require("path");
const protobuf = require("protobufjs");

const MAXIMUM = 1024 * 1024; // longest payload from a gateway, in bytes
const PROTO = path.join(process.env.TIDEGATE_PROTO, "tidegate.proto");
// protobufjs calls the fields userId, bizData ... unless it is told to keep their names.
const root = new protobuf.Root().loadSync(PROTO, { keepCase: true });
const [Request, Response, Session, Pong, Notice] =
  ["Request", "Response", "Session", "Pong", "Notice"].map((name) => root.lookupType(`tidegate.v1.${name}`));

// PROTOCOL.md: javascript
class Frames {
  constructor(maximum) {
    this.maximum = maximum;
    this.kept = Buffer.alloc(0);
  }

  /** Takes what has come; gives each payload that is whole. */
  *push(bytes) {
    this.kept = Buffer.concat([this.kept, bytes]);
    for (;;) {
      let length = 0;
      let i = 0;
      for (let byte = 0x80; byte >= 0x80; i++) {
        if (i === this.kept.length) return; // the length is cut
        byte = this.kept[i];
        if (i === 4 && byte >= 0x80) throw new Error("malformed length");
        length += (byte & 0x7f) * 2 ** (7 * i); // << has 32 bits
      }
      if (length > this.maximum) throw new Error(`a frame of ${length} bytes`);
      if (this.kept.length - i < length) return; // the payload is cut
      const payload = this.kept.subarray(i, i + length);
      this.kept = this.kept.subarray(i + length);
      yield payload;
    }
  }
}
// end

/** What a response is to a client. */
function kind(response) {
  const answers = response.sequence.toString() !== "0"; // a Long, or a number
  if (response.status !== 1) return response.type !== 0 || answers ? "failed" : "goodbye";
  if (response.type === -2) return Notice.decode(response.biz_data).what ?? "ignored";
  if (response.type < -1) return "ignored";
  if (response.type === -1) return Pong.decode(response.biz_data) && "pong";
  if (response.type === 0) return Session.decode(response.biz_data) && "authenticated";
  return answers ? "answer" : "push";
}

/** The error code of a failure; null where it holds none. */
function code(response) {
  return response.biz_data.length === 4 ? Buffer.from(response.biz_data).readUInt32BE() : null;
}

function show(response) {
  const what = kind(response);
  let text = "";
  if (what === "answer" || what === "push") text = Buffer.from(response.biz_data).toString();
  if (what === "failed" || what === "goodbye") text = `${code(response)}`;
  console.log(`${what} ${text}`.trim());
}

function main(port, user, token) {
  // allowHalfOpen: half-close must not close both directions.
  const socket = net.connect({ host: "127.0.0.1", port: Number(port), allowHalfOpen: true });
  const frames = new Frames(MAXIMUM);
  const waiting = new Set();
  let sequence = 1;
  let pushed = false;
  const send = (fields) => {
    waiting.add(`${sequence}`);
    socket.write(Request.encodeDelimited(Request.fromObject({ ...fields, sequence: sequence++ })).finish());
  };
  socket.setTimeout(30_000, () => socket.destroy(new Error("nothing came")));
  socket.on("connect", () => send({ user_id: user, token }));
  socket.on("data", (bytes) => {
    for (const payload of frames.push(bytes)) {
      const response = Response.decode(payload);
      show(response);
      waiting.delete(response.sequence.toString());
      if (kind(response) === "authenticated") { // no business before the session
        for (const type of [1, 2, -1, 100]) send({ type, biz_data: Buffer.from("hello") });
      }
      pushed ||= kind(response) === "push"; // it may come before its answer
    }
    if (waiting.size === 0 && pushed) socket.end(); // half-close: what was asked is still answered
  });
  socket.on("end", () => console.log("end"));
}

module.exports = { Frames, MAXIMUM, Notice, Pong, Request, Response, Session, code, kind };
if (require.main === module) main(...process.argv.slice(2));
