// Files that only their owner may read, each on the disk before it is relied on.
#pragma once

#include <string>

#include "common.h"

namespace fedslm {

// Makes a folder of mode 700; refuses one that others may look into.
void private_folder(const std::string& path);
// Puts a whole file of mode 600 in the place of another, or leaves the other as it was.
void replace_private(const std::string& path, std::string_view data);
// Refuses a file that others may read.
Bytes read_private(const std::string& path, std::size_t most);
bool exists(const std::string& path);
void remove_file(const std::string& path);
// Waits until the names in a folder are on the disk.
void sync_folder(const std::string& folder);
std::string folder_of(const std::string& path);

// Holds a file for one process; refuses one that another process holds.
class Held {
 public:
  explicit Held(const std::string& path);
  ~Held();
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

 private:
  int descriptor_;
};

}  // namespace fedslm
