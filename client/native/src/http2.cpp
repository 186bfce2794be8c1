#include "http2.h"

#include <chrono>

#include "tls.h"

namespace fedslm {
namespace {

constexpr char kPreface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr std::size_t kLongestFrame = 16384;
constexpr std::size_t kLongestBlock = 65536;
constexpr std::uint32_t kWindow = 1u << 30;
enum : std::uint8_t { kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kPush = 5, kPing = 6, kGoAway = 7, kContinuation = 9 };
enum : std::uint8_t { kEndStream = 1, kAck = 1, kEndHeaders = 4, kPadded = 8, kPriority = 32 };

// Bits of each symbol's code, RFC 7541 appendix B. Codes of one length follow each other in the order
// of their symbols, so the lengths say everything.
constexpr unsigned char kBits[257] = {
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6,  10, 10, 12, 13, 6,  8,  11, 10, 10, 8,  11, 8,  6,  6,  6,  5,  5,  5,  6,  6,  6,  6,  6,  6,  6,
    7,  8,  15, 6,  12, 10, 13, 6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
    7,  8,  7,  8,  13, 19, 13, 14, 6,  15, 5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,  6,  7,  6,  5,
    5,  6,  7,  7,  7,  7,  7,  15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24,
    24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22,
    23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26,
    27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23,
    22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30};
constexpr int kEnd = 256;

// For each length: the first code of that length, and the symbols that have one, in order.
struct Codes {
  Codes() {
    std::uint32_t code = 0;
    for (int bits = 1; bits <= 30; ++bits) {
      code <<= 1;
      first[bits] = code;
      for (int symbol = 0; symbol <= kEnd; ++symbol)
        if (kBits[symbol] == bits) symbols[bits].push_back(symbol);
      code += static_cast<std::uint32_t>(symbols[bits].size());
    }
  }
  std::uint32_t first[31] = {};
  std::vector<int> symbols[31];
};

std::string expanded(std::string_view text) {
  static const Codes codes;
  std::string out;
  std::uint32_t code = 0;
  int bits = 0;
  for (const char c : text)
    for (int at = 7; at >= 0; --at) {
      code = code << 1 | ((static_cast<unsigned char>(c) >> at) & 1u);
      require(++bits <= 30, "a header field has no code");
      const std::uint32_t place = code - codes.first[bits];
      if (code < codes.first[bits] || place >= codes.symbols[bits].size()) continue;
      require(codes.symbols[bits][place] != kEnd, "a header field has no code");
      out += static_cast<char>(codes.symbols[bits][place]);
      code = 0;
      bits = 0;
    }
  require(bits < 8 && code == (1u << bits) - 1, "a header field is padded wrongly");
  return out;
}

class Block {
 public:
  explicit Block(std::string_view rest) : rest_(rest) {}
  bool done() const { return rest_.empty(); }
  unsigned char peek() const { return static_cast<unsigned char>(rest_[0]); }
  std::uint64_t number(int bits) {
    require(!rest_.empty(), "a header block is cut off");
    const std::uint64_t most = (1u << bits) - 1;
    std::uint64_t value = take() & most;
    if (value < most) return value;
    for (int shift = 0; shift <= 28; shift += 7) {
      require(!rest_.empty(), "a header block is cut off");
      const unsigned char byte = take();
      value += static_cast<std::uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
    mismatch("a header block has too large a number");
  }
  std::string text() {
    require(!rest_.empty(), "a header block is cut off");
    const bool packed = (peek() & 128) != 0;
    const std::uint64_t size = number(7);
    require(size <= rest_.size(), "a header block is cut off");
    const std::string_view found = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return packed ? expanded(found) : std::string(found);
  }

 private:
  unsigned char take() {
    const auto byte = static_cast<unsigned char>(rest_[0]);
    rest_.remove_prefix(1);
    return byte;
  }
  std::string_view rest_;
};

std::string static_name(std::uint64_t index) {
  require(index >= 1 && index <= 61, "a header field names a table that was not allowed");
  if (index >= 8 && index <= 14) return ":status";
  return index == 31 ? "content-type" : "";
}

std::string static_value(std::uint64_t index) {
  static const char* const statuses[] = {"200", "204", "206", "304", "400", "404", "500"};
  return index >= 8 && index <= 14 ? statuses[index - 8] : "";
}

Bytes frame(std::uint8_t kind, std::uint8_t flags, std::uint32_t stream, const Bytes& payload) {
  Bytes out;
  for (int shift : {16, 8, 0}) out += static_cast<char>(payload.size() >> shift & 255);
  out += static_cast<char>(kind);
  out += static_cast<char>(flags);
  for (int shift : {24, 16, 8, 0}) out += static_cast<char>(stream >> shift & 255);
  return out + payload;
}

Bytes four(std::uint32_t value) {
  Bytes out;
  for (int shift : {24, 16, 8, 0}) out += static_cast<char>(value >> shift & 255);
  return out;
}

struct Frame {
  std::uint8_t kind = 0, flags = 0;
  std::uint32_t stream = 0;
  Bytes payload;

  // The payload without padding and priority.
  std::string_view inside() const {
    std::string_view found = payload;
    std::size_t padding = 0;
    if (flags & kPadded) {
      require(!found.empty(), "a frame is cut off");
      padding = static_cast<unsigned char>(found[0]);
      found.remove_prefix(1);
    }
    if (kind == kHeaders && (flags & kPriority)) {
      require(found.size() >= 5, "a frame is cut off");
      found.remove_prefix(5);
    }
    require(padding <= found.size(), "a frame is cut off");
    found.remove_suffix(padding);
    return found;
  }
};

class Reader {
 public:
  Reader(TlsStream& tls, double seconds)
      : tls_(tls), end_(std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                                             std::chrono::duration<double>(seconds))) {}
  Frame next() {
    const Bytes head = take(9);
    const auto byte = [&head](int i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(head[i])); };
    const std::size_t size = byte(0) << 16 | byte(1) << 8 | byte(2);
    require(size <= kLongestFrame, "a frame is longer than was allowed");
    Frame found{static_cast<std::uint8_t>(byte(3)), static_cast<std::uint8_t>(byte(4)),
                (byte(5) << 24 | byte(6) << 16 | byte(7) << 8 | byte(8)) & 0x7fffffffu, take(size)};
    return found;
  }

 private:
  Bytes take(std::size_t size) {
    while (buffer_.size() < size) {
      if (std::chrono::steady_clock::now() > end_) throw Refusal("server-unreachable", "an answer takes too long");
      if (!tls_.receive(buffer_)) throw Refusal("server-unreachable", "an answer is cut off");
    }
    Bytes out = buffer_.substr(0, size);
    buffer_.erase(0, size);
    return out;
  }
  TlsStream& tls_;
  Bytes buffer_;
  std::chrono::steady_clock::time_point end_;
};

}  // namespace

Fields decode_fields(std::string_view text) {
  Fields found;
  const auto keep = [&found](const std::string& name, const std::string& value) {
    require(found.size() < 100, "too many header fields");
    if (!name.empty()) found[name] = value;
  };
  for (Block block(text); !block.done();) {
    const unsigned char first = block.peek();
    if (first & 128) {
      const std::uint64_t index = block.number(7);
      keep(static_name(index), static_value(index));
    } else if ((first & 224) == 32) {
      require(block.number(5) == 0, "a peer keeps a table that was not allowed");
    } else {
      const std::uint64_t index = block.number((first & 64) ? 6 : 4);
      const std::string name = index == 0 ? block.text() : static_name(index);
      keep(name, block.text());
    }
  }
  return found;
}

Bytes encode_fields(const std::vector<std::pair<std::string, std::string>>& fields) {
  Bytes out;
  const auto text = [&out](const std::string& said) {
    std::size_t size = said.size();
    if (size < 127) {
      out += static_cast<char>(size);
    } else {
      out += static_cast<char>(127);
      for (size -= 127; size >= 128; size >>= 7) out += static_cast<char>((size & 127) | 128);
      out += static_cast<char>(size);
    }
    out += said;
  };
  for (const auto& [name, value] : fields) {
    out += '\0';
    text(name);
    text(value);
  }
  return out;
}

Fields exchange(TlsStream& tls, const std::vector<std::pair<std::string, std::string>>& request, const Bytes& body,
                const std::function<void(std::string_view)>& data, double seconds) {
  const Bytes block = encode_fields(request);
  require(block.size() <= kLongestFrame && body.size() <= kLongestFrame, "a request is too long");
  const auto setting = [](int name, std::uint32_t value) { return Bytes{'\0', static_cast<char>(name)} + four(value); };
  tls.send(kPreface + frame(kSettings, 0, 0, setting(1, 0) + setting(2, 0) + setting(4, kWindow)) +
           frame(8, 0, 0, four(kWindow - 65535)) + frame(kHeaders, kEndHeaders, 1, block) +
           frame(kData, kEndStream, 1, body));
  Fields found;
  Bytes fields;
  bool last = false, open = false;  // open: a block goes on in the next frame
  for (Reader reader(tls, seconds);;) {
    const Frame one = reader.next();
    require(!open || (one.kind == kContinuation && one.stream == 1), "a header block is interrupted");
    if (one.kind == kSettings && !(one.flags & kAck)) tls.send(frame(kSettings, kAck, 0, ""));
    if (one.kind == kPing && !(one.flags & kAck)) tls.send(frame(kPing, kAck, 0, one.payload));
    require(one.kind != kPush, "the server pushes what was not asked for");
    if (one.kind == kGoAway && (one.payload.size() < 8 || four(0) == one.payload.substr(0, 4)))
      throw Refusal("server-unreachable", "the server goes away");
    if (one.stream != 1) continue;
    if (one.kind == kReset) throw Refusal("server-unreachable", "the server broke a call off");
    if (one.kind == kData) {
      data(one.inside());
      if (one.flags & kEndStream) return found;
    } else if (one.kind == kHeaders || one.kind == kContinuation) {
      require(one.kind == kHeaders || open, "a header block goes on that did not begin");
      if (one.kind == kHeaders) {
        fields.clear();
        last = (one.flags & kEndStream) != 0;
      }
      fields += one.kind == kHeaders ? one.inside() : std::string_view(one.payload);
      require(fields.size() <= kLongestBlock, "a header block is too long");
      open = !(one.flags & kEndHeaders);
      if (open) continue;
      for (const auto& [name, value] : decode_fields(fields)) found[name] = value;
      if (last) return found;
    }
  }
}

}  // namespace fedslm
