// Holds C++'s protobuf, with the lines that PROTOCOL.md gives, to streams from standard input, a line each:
// a name, the longest payload, and hex. Says what comes out, and what the stock helper makes of the page's
// probes. See ../README.md for what it prints.
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <string>

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/util/delimited_message_util.h>

#include "tidegate.pb.h"
#include "tidegate_business.pb.h"
#include "tidegate_demo.pb.h"

namespace io = google::protobuf::io;
using tidegate::v1::Response;

// PROTOCOL.md: cpp
// False at the end of the stream, and then *at_end is set, and where the stream can't be read any further.
bool Read(io::ZeroCopyInputStream* stream, uint64_t maximum, Response* response, bool* at_end) {
  io::CodedInputStream in(stream);
  uint64_t length = 0;
  *at_end = false;
  if (!in.ReadVarint64(&length)) {
    *at_end = in.CurrentPosition() == 0;
    return false;
  }
  std::string payload;
  return length <= maximum && in.ReadString(&payload, static_cast<int>(length)) &&
         response->ParseFromString(payload);
}
// end

static std::string Unhex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

static const char* Probe(const std::string& name) {
  // `too_long` is a whole frame of one byte too many.
  const std::string bytes = name == "too_long" ? Unhex("8180401afdff3f") + std::string((1 << 20) - 3, 0) : Unhex(name);
  io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()));
  Response response;
  bool at_end = false;
  if (!google::protobuf::util::ParseDelimitedFromZeroCopyStream(&response, &stream, &at_end)) return "refuses";
  if (name == "060802") return "half a message";
  return response.ByteSizeLong() == 0 ? "empty message" : "accepts";
}

int main() {
  for (const char* name : {"too_long", "ffffffff0f", "8080808010", "8000", "060802"}) {
    std::cout << "probe cpp " << name << " " << Probe(name) << "\n";
  }
  std::string name, hex;
  for (uint64_t maximum; std::cin >> name >> maximum >> hex;) {
    const std::string bytes = Unhex(hex);
    // A byte at a time, as a stream may come.
    io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()), 1);
    Response response;
    bool at_end = false;
    int count = 0;
    for (; Read(&stream, maximum, &response, &at_end); count++) response.Clear();
    std::cout << "stream cpp " << name << " " << count << " " << (at_end ? "whole" : "cut") << "\n";
  }
  // Two messages of one name in two packages.
  return tidegate::business::v1::Response().code() + tidegate::demo::v1::RoomMessage().from_user_id();
}
