// Files of one `key = value` a line; `#` begins a comment.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common.h"

namespace fedslm {

// What enrolment wrote beside the owner's own file.
constexpr char kDevice[] = "device.conf";

class Lines {
 public:
  explicit Lines(const std::string& path);
  // Reads a file of the same folder too, if it is there; what both say must be one thing.
  void beside(const std::string& name);
  bool has(const std::string& name) const { return values_.count(name) == 1; }
  void drop(const std::string& name) { values_.erase(name); }
  // Each takes the key away.
  std::string text(const std::string& name);
  std::string path(const std::string& name);  // relative to the file
  std::string digest(const std::string& name);
  double real(const std::string& name, double least, double most);
  std::int64_t whole(const std::string& name, std::int64_t least);
  bool yes(const std::string& name);
  std::vector<std::string> list(const std::string& name);  // separated by commas
  // Refuses what nobody took.
  void done() const;

 private:
  void read(const std::string& path);
  std::string folder_;
  std::map<std::string, std::string> values_;
};

}  // namespace fedslm
