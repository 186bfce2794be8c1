#include "lines.h"

#include "files.h"
#include "json.h"

namespace fedslm {
namespace {

[[noreturn]] void wrong(const std::string& why) { throw Refusal("config", why); }

std::string trimmed(std::string text) {
  text = text.substr(0, text.find('#'));
  const std::size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

Json number(const std::string& text, const std::string& name) {
  try {
    Json value = parse_json(text);
    if (value.kind == Json::Kind::number) return value;
  } catch (const Refusal&) {
  }
  wrong(name + " is no number");
}

}  // namespace

Lines::Lines(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  folder_ = slash == std::string::npos ? "" : path.substr(0, slash + 1);
  read(path);
}

void Lines::beside(const std::string& name) {
  if (!exists(folder_ + name)) return;
  std::map<std::string, std::string> first;
  first.swap(values_);
  read(folder_ + name);
  for (const auto& [key, value] : first)
    if (!values_.emplace(key, value).second && values_[key] != value) wrong(key + " is another one in " + name);
}

void Lines::read(const std::string& path) {
  const Bytes text = read_file(path, 1 << 16);
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = trimmed(text.substr(at, end - at));
    at = end + 1;
    if (line.empty()) continue;
    const std::size_t equals = line.find('=');
    if (equals == std::string::npos) wrong("a line has no =");
    const std::string name = trimmed(line.substr(0, equals));
    if (!values_.emplace(name, trimmed(line.substr(equals + 1))).second) wrong(name + " is given twice");
  }
}

std::string Lines::text(const std::string& name) {
  const auto found = values_.find(name);
  if (found == values_.end() || found->second.empty()) wrong(name + " is missing");
  const std::string value = found->second;
  values_.erase(found);
  return value;
}

std::string Lines::path(const std::string& name) {
  const std::string value = text(name);
  return value[0] == '/' ? value : folder_ + value;
}

std::string Lines::digest(const std::string& name) {
  const std::string value = text(name);
  if (!is_digest(value)) wrong(name + " is no SHA-256 in lower-case hexadecimal");
  return value;
}

double Lines::real(const std::string& name, double least, double most) {
  const double value = number(text(name), name).real();
  if (!(value >= least && value <= most)) wrong(name + " is out of range");
  return value;
}

std::int64_t Lines::whole(const std::string& name, std::int64_t least) {
  const std::int64_t value = number(text(name), name).whole();
  if (value < least) wrong(name + " is out of range");
  return value;
}

bool Lines::yes(const std::string& name) {
  const std::string said = text(name);
  if (said != "yes" && said != "no") wrong(name + " is neither yes nor no");
  return said == "yes";
}

std::vector<std::string> Lines::list(const std::string& name) {
  const std::string all = text(name);
  std::vector<std::string> found;
  for (std::size_t at = 0; at <= all.size();) {
    const std::size_t end = std::min(all.find(',', at), all.size());
    found.push_back(trimmed(all.substr(at, end - at)));
    if (found.back().empty()) wrong(name + " has an empty part");
    at = end + 1;
  }
  return found;
}

void Lines::done() const {
  if (!values_.empty()) wrong("unknown key " + values_.begin()->first);
}

}  // namespace fedslm
