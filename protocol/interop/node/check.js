// Holds protobufjs, with the lines that PROTOCOL.md gives, to every test vector, and says what the stock
// helper makes of the page's probes. See ../README.md for what it prints.
"use strict";
const assert = require("assert");
const fs = require("fs");
const path = require("path");
const protobuf = require("protobufjs");
const { Frames, MAXIMUM, Notice, Pong, Request, Response, Session, code, kind } = require("./client.js");

const Resume = Request.root.lookupType("tidegate.v1.Resume");
let checked = 0;

function load(file) {
  return JSON.parse(fs.readFileSync(path.join(process.argv[2], file), "utf8")).vectors;
}

function data(vector, key) {
  if (key in vector) return Buffer.from(vector[key], "hex");
  return Buffer.concat(
    vector[`${key}_parts`].map((part) => Buffer.alloc(part.times * (part.hex.length / 2), part.hex, "hex")));
}

function same(vector, wanted, found) {
  checked++;
  assert.deepStrictEqual(found, wanted, vector.name);
}

/** Whether the reader did as the vector says to the letter; if not, it has to be allowed. */
function verdict(vector, refused, fails) {
  checked++;
  if (refused) {
    console.log(`${fails ? "refuses" : "accepts"} node ${vector.name}`);
    assert(fails || vector.sdk_may_accept, `accepts ${JSON.stringify(vector)}`);
  } else {
    assert(!fails, `refuses ${JSON.stringify(vector)}`);
  }
  return refused === fails;
}

/** A message's fields as a vector writes them: 64 bits in strings, bytes in hex. */
function plain(type, message) {
  const all = { longs: String, bytes: Array, defaults: true };
  const fields = type.toObject(message, all);
  if (fields.biz_data) fields.biz_data = Buffer.from(fields.biz_data).toString("hex");
  return fields;
}

function wantedFields(fields) {
  const { biz_data_parts, ...rest } = fields;
  return { ...rest, biz_data: data(fields, "biz_data").toString("hex") };
}

/** What a reader makes of chunks: the payloads after each, and whether it refused. */
function feed(maximum, chunks) {
  const frames = new Frames(maximum);
  const payloads = [];
  for (const chunk of chunks) {
    payloads.push([]);
    try {
      for (const payload of frames.push(chunk)) payloads.at(-1).push(payload.toString("hex"));
    } catch {
      return { payloads, refused: true };
    }
  }
  return { payloads, refused: false, kept: frames.kept.length };
}

/** A room as a vector writes it. */
function plainRoom(room) {
  return { ...room, ticket: Buffer.from(room.ticket).toString("hex") };
}

/** An authentication's positions, in both directions. */
function resume(vector) {
  const { canonical, positions } = vector.resume;
  const bizData = data(vector.request, "biz_data");
  const wanted = positions.map(({ acceptable, ...position }) => position);
  same(vector, wanted, plain(Resume, Resume.decode(bizData)).positions.map(plainRoom));
  if (!canonical) return;
  // protobufjs writes a field that is set, default or not.
  const set = wanted.map((position) => Object.fromEntries(
    Object.entries({ ...position, ticket: Buffer.from(position.ticket, "hex") })
      .filter(([, value]) => value !== "0" && value.length > 0)));
  const written = Resume.encode(Resume.fromObject({ positions: set })).finish();
  same(vector, bizData.toString("hex"), Buffer.from(written).toString("hex"));
}

function onlyPayload(frame) {
  const [[payload]] = feed(MAXIMUM, [frame]).payloads;
  return Buffer.from(payload, "hex");
}

function requests() {
  for (const vector of load("requests.json")) {
    const frame = data(vector, "frame");
    const wanted = wantedFields(vector.request);
    same(vector, wanted, plain(Request, Request.decode(onlyPayload(frame))));
    if (vector.resume) resume(vector);
    if (!vector.canonical) continue;
    const request = Request.fromObject({ ...wanted, biz_data: data(vector.request, "biz_data") });
    // protobufjs writes a field that is set, default or not; fromObject sets what is given.
    for (const field of Request.fieldsArray) {
      if (`${request[field.name]}` === `${field.defaultValue}` || !request[field.name].toString().length) {
        delete request[field.name];
      }
    }
    same(vector, frame.toString("hex"), Buffer.from(Request.encodeDelimited(request).finish()).toString("hex"));
  }
}

function responses() {
  for (const vector of load("responses.json")) {
    const response = Response.decode(onlyPayload(data(vector, "frame")));
    same(vector, wantedFields(vector.response), plain(Response, response));
    const { event } = vector;
    same(vector, event.kind, kind(response));
    if ("code" in event) same(vector, event.code, code(response));
    const inner = { pong: Pong, authenticated: Session, joined: Notice, left: Notice }[event.kind];
    if (!inner) continue;
    const found = plain(inner, inner.decode(response.biz_data));
    if (found.rooms) found.rooms = found.rooms.map(plainRoom);
    if (inner === Notice) {
      const [wanted, named] = event.kind === "joined" ? [event.room, plainRoom(found.joined)] : [event.name, found.left];
      same(vector, wanted, named);
      continue;
    }
    const { kind: _, ...fields } = event;
    same(vector, fields, found);
  }
}

function streams() {
  for (const vector of load("streams.json")) {
    const chunks = vector.chunks.map((chunk) => data(chunk, "hex"));
    const wanted = vector.chunks.map((chunk) => chunk.payloads);
    const refused = vector.ends === "refused";
    const found = feed(vector.payload_bytes_max, chunks);
    if (verdict(vector, refused, found.refused)) same(vector, wanted, found.payloads);
    if (!refused) same(vector, vector.incomplete_bytes, found.kept);
    const bytes = [...Buffer.concat(chunks)].map((byte) => Buffer.of(byte));
    const slow = feed(vector.payload_bytes_max, bytes);
    if (verdict(vector, refused, slow.refused)) same(vector, wanted.flat(), slow.payloads.flat());
  }
}

function malformed() {
  for (const vector of load("malformed.json")) {
    const found = feed(vector.payload_bytes_max, [data(vector, "stream")]);
    let fails = found.refused;
    try {
      for (const payload of found.payloads.flat()) kind(Response.decode(Buffer.from(payload, "hex")));
    } catch {
      fails = true;
    }
    if (vector.direction === "to_client" || vector.refused_as === "frame") verdict(vector, true, fails);
  }
}

function probes() {
  for (const probe of ["too_long", "ffffffff0f", "8080808010", "8000", "060802"]) {
    // `too_long` is a whole frame of one byte too many.
    const tooLong = () => Buffer.concat([Buffer.from("8180401afdff3f", "hex"), Buffer.alloc(MAXIMUM - 3)]);
    const stream = probe === "too_long" ? tooLong() : Buffer.from(probe, "hex");
    let outcome = "refuses";
    try {
      const read = Response.decodeDelimited(protobuf.Reader.create(stream));
      const empty = Response.encode(read).finish().length === 0 ? "empty message" : "accepts";
      outcome = probe === "060802" ? "half a message" : empty;
    } catch {
      // it refuses
    }
    console.log(`probe node ${probe} ${outcome}`);
  }
}

requests();
responses();
streams();
malformed();
probes();
console.log(`checked ${checked}`);
