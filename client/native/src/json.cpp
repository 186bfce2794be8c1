#include "json.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <set>

namespace fedslm {
namespace {

constexpr int kDeepest = 64;

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  Json whole() {
    Json value = read(0);
    space();
    require(at_ == text_.size(), "JSON goes on after its value");
    return value;
  }

 private:
  Json read(int depth) {
    require(depth <= kDeepest, "JSON is too deep");
    space();
    Json value;
    const char next = peek();
    if (next == '{') {
      value.kind = Json::Kind::object;
      object(value, depth);
    } else if (next == '[') {
      value.kind = Json::Kind::array;
      ++at_;
      for (space(); peek() != ']';) {
        value.items.push_back(read(depth + 1));
        if (!more(']')) break;
      }
      ++at_;
    } else if (next == '"') {
      value.kind = Json::Kind::string;
      value.text = string();
    } else if (next == 't' || next == 'f') {
      value.kind = Json::Kind::boolean;
      value.flag = next == 't';
      word(value.flag ? "true" : "false");
    } else if (next == 'n') {
      word("null");
    } else {
      value.kind = Json::Kind::number;
      value.text = number();
    }
    return value;
  }

  void object(Json& value, int depth) {
    std::set<std::string> known;
    ++at_;
    for (space(); peek() != '}';) {
      space();
      std::string name = string();
      require(known.insert(name).second, "JSON gives a name twice");
      space();
      require(peek() == ':', "JSON has no colon after a name");
      ++at_;
      value.members.emplace_back(std::move(name), read(depth + 1));
      if (!more('}')) break;
    }
    ++at_;
  }

  // After a part: goes on after a comma, or stops before the end.
  bool more(char end) {
    space();
    if (peek() == end) return false;
    require(peek() == ',', "JSON has no comma between parts");
    ++at_;
    space();
    require(peek() != end, "JSON ends after a comma");
    return true;
  }

  std::string string() {
    require(peek() == '"', "JSON has no text where one must be");
    ++at_;
    std::string out;
    while (peek() != '"') {
      const auto c = static_cast<unsigned char>(text_[at_++]);
      require(c >= 0x20, "JSON has a control character in a text");
      if (c == '\\')
        escape(out);
      else
        out += static_cast<char>(c);
    }
    ++at_;
    return out;
  }

  void escape(std::string& out) {
    static const std::string_view from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
    const char c = peek();
    ++at_;
    if (c == 'u') {
      unsigned code = four();
      if (code >= 0xd800 && code < 0xdc00) {
        require(text_.substr(at_, 2) == "\\u", "JSON has half a character");
        at_ += 2;
        const unsigned low = four();
        require(low >= 0xdc00 && low < 0xe000, "JSON has half a character");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
      }
      require(code < 0xd800 || code >= 0xe000, "JSON has half a character");
      utf8(out, code);
      return;
    }
    const std::size_t place = from.find(c);
    require(place != std::string_view::npos, "JSON has an unknown escape");
    out += to[place];
  }

  unsigned four() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      ++at_;
      code *= 16;
      if (c >= '0' && c <= '9')
        code += static_cast<unsigned>(c - '0');
      else if ((c | 32) >= 'a' && (c | 32) <= 'f')
        code += static_cast<unsigned>((c | 32) - 'a') + 10;
      else
        mismatch("JSON has a wrong escape");
    }
    return code;
  }

  static void utf8(std::string& out, unsigned code) {
    const auto put = [&out](unsigned byte) { out += static_cast<char>(byte); };
    if (code < 0x80) {
      put(code);
    } else if (code < 0x800) {
      put(0xc0 | code >> 6);
      put(0x80 | (code & 63));
    } else if (code < 0x10000) {
      put(0xe0 | code >> 12);
      put(0x80 | (code >> 6 & 63));
      put(0x80 | (code & 63));
    } else {
      put(0xf0 | code >> 18);
      put(0x80 | (code >> 12 & 63));
      put(0x80 | (code >> 6 & 63));
      put(0x80 | (code & 63));
    }
  }

  std::string number() {
    const std::size_t start = at_;
    if (peek() == '-') ++at_;
    const std::size_t first = at_;
    const std::size_t leading = digits();
    require(leading == 1 || text_[first] != '0', "JSON has a number that begins with 0");
    if (at_ < text_.size() && text_[at_] == '.') {
      ++at_;
      digits();
    }
    if (at_ < text_.size() && (text_[at_] | 32) == 'e') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    return std::string(text_.substr(start, at_ - start));
  }

  std::size_t digits() {
    const std::size_t start = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    require(at_ > start, "JSON has no value where one must be");
    return at_ - start;
  }

  void word(std::string_view expected) {
    require(text_.substr(at_, expected.size()) == expected, "JSON has an unknown word");
    at_ += expected.size();
  }

  void space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }

  char peek() const {
    require(at_ < text_.size(), "JSON ends too early");
    return text_[at_];
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

void write(std::string& out, const Json& value, std::string_view without) {
  switch (value.kind) {
    case Json::Kind::null: out += "null"; return;
    case Json::Kind::boolean: out += value.flag ? "true" : "false"; return;
    case Json::Kind::number: out += value.text; return;
    case Json::Kind::string: out += quoted(value.text); return;
    case Json::Kind::array:
      out += '[';
      for (std::size_t i = 0; i < value.items.size(); ++i) {
        if (i) out += ',';
        write(out, value.items[i], "");
      }
      out += ']';
      return;
    case Json::Kind::object: break;
  }
  std::vector<const std::pair<std::string, Json>*> sorted;
  for (const auto& member : value.members)
    if (without.empty() || member.first != without) sorted.push_back(&member);
  std::sort(sorted.begin(), sorted.end(), [](auto* a, auto* b) { return a->first < b->first; });
  out += '{';
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    if (i) out += ',';
    out += quoted(sorted[i]->first) + ":";
    write(out, sorted[i]->second, "");
  }
  out += '}';
}

// One character of UTF-8; refuses what is none.
unsigned character(std::string_view text, std::size_t& at) {
  const auto first = static_cast<unsigned char>(text[at++]);
  if (first < 0x80) return first;
  const int rest = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
  require(first >= 0xc2 && first < 0xf5, "a text is not UTF-8");
  unsigned code = first & (0x3fu >> rest);
  for (int i = 0; i < rest; ++i) {
    require(at < text.size() && (text[at] & 0xc0) == 0x80, "a text is not UTF-8");
    code = code << 6 | (static_cast<unsigned char>(text[at++]) & 63u);
  }
  return code;
}

}  // namespace

const Json* Json::find(std::string_view name) const {
  for (const auto& member : members)
    if (member.first == name) return &member.second;
  return nullptr;
}

const Json& Json::at(std::string_view name) const {
  const Json* found = find(name);
  if (kind != Kind::object || found == nullptr) mismatch("a document has no " + std::string(name));
  return *found;
}

const std::string& Json::string() const {
  require(kind == Kind::string, "a value is no text");
  return text;
}

bool Json::boolean() const {
  require(kind == Kind::boolean, "a value is neither true nor false");
  return flag;
}

double Json::real() const {
  require(kind == Kind::number, "a value is no number");
  const double value = std::strtod(text.c_str(), nullptr);
  require(std::isfinite(value), "a number is too large");
  return value;
}

std::int64_t Json::whole() const {
  require(kind == Kind::number && text.find_first_of(".eE") == std::string::npos, "a value is no integer");
  errno = 0;
  const long long value = std::strtoll(text.c_str(), nullptr, 10);
  require(errno == 0, "an integer is too large");
  return value;
}

const std::vector<Json>& Json::list() const {
  require(kind == Kind::array, "a value is no list");
  return items;
}

Floats Json::floats() const { return floats_of(unhex(string())); }

Json parse_json(std::string_view text) { return Reader(text).whole(); }

std::string canonical(const Json& value, std::string_view without) {
  std::string out;
  write(out, value, without);
  return out;
}

std::string quoted(std::string_view utf8) {
  static const std::string_view from = "\"\\\b\f\n\r\t", to = "\"\\bfnrt";
  std::string out = "\"";
  const auto escaped = [&out](unsigned unit) {
    char text[16];
    std::snprintf(text, sizeof text, "\\u%04x", unit);
    out += text;
  };
  for (std::size_t at = 0; at < utf8.size();) {
    const unsigned code = character(utf8, at);
    const std::size_t place = code < 0x80 ? from.find(static_cast<char>(code)) : std::string_view::npos;
    if (place != std::string_view::npos) {
      out += '\\';
      out += to[place];
    } else if (code >= 0x20 && code < 0x7f) {
      out += static_cast<char>(code);
    } else if (code < 0x10000) {
      escaped(code);
    } else {
      escaped(0xd800 + ((code - 0x10000) >> 10));
      escaped(0xdc00 + ((code - 0x10000) & 0x3ff));
    }
  }
  return out + "\"";
}

}  // namespace fedslm
