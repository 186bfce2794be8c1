#include "files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace fedslm {
namespace {

[[noreturn]] void failed(const std::string& path) {
  throw Refusal(errno == ENOSPC ? "out-of-disk" : "fleet", "cannot write " + path);
}

}  // namespace

void private_folder(const std::string& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) failed(path);
  struct stat status {};
  if (lstat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode) || (status.st_mode & 077) != 0)
    throw Refusal("fleet", "not a folder of its owner alone: " + path);
}

void replace_private(const std::string& path, std::string_view data) {
  const std::string fresh = path + ".new";
  unlink(fresh.c_str());
  const int descriptor = open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (descriptor < 0) failed(path);
  bool good = true;
  for (std::size_t at = 0; good && at < data.size();) {
    const ssize_t done = write(descriptor, data.data() + at, data.size() - at);
    if (done < 0 && errno == EINTR) continue;
    good = done > 0;
    if (good) at += static_cast<std::size_t>(done);
  }
  good = good && fsync(descriptor) == 0;
  if (close(descriptor) != 0 || !good || std::rename(fresh.c_str(), path.c_str()) != 0) {
    const int why = errno;
    unlink(fresh.c_str());
    errno = why;
    failed(path);
  }
  sync_folder(folder_of(path));
}

Bytes read_private(const std::string& path, std::size_t most) {
  struct stat status {};
  if (lstat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode) || (status.st_mode & 077) != 0)
    throw Refusal("fleet", "missing, or others may read it: " + path);
  return read_file(path, most);
}

bool exists(const std::string& path) {
  struct stat status {};
  return lstat(path.c_str(), &status) == 0;
}

void remove_file(const std::string& path) {
  if (unlink(path.c_str()) != 0 && errno != ENOENT) failed(path);
}

void sync_folder(const std::string& folder) {
  const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool done = descriptor >= 0 && fsync(descriptor) == 0;
  if (descriptor >= 0) close(descriptor);
  if (!done) failed(folder);
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Held::Held(const std::string& path) : descriptor_(open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600)) {
  if (descriptor_ < 0) failed(path);
  if (flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
  close(descriptor_);
  throw Refusal("already-running", "another process holds " + path);
}

Held::~Held() { close(descriptor_); }

}  // namespace fedslm
