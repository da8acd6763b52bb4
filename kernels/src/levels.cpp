#include "levels.h"

#include <string.h>

#include <atomic>
#include <string>

namespace pplex {
namespace {

const Level* const kLevels[] = {
#if defined(__x86_64__)
    &kAvx512Vnni, &kAvxVnni, &kAvx2,
#elif defined(__aarch64__)
    &kNeonDot,
#endif
    &kPortable,
};

const Level* find(const char* name) {
  for (const Level* one : kLevels)
    if ((!strcmp(name, "auto") || !strcmp(name, one->name)) && one->runs_here()) return one;
  return nullptr;
}

std::atomic<const Level*>& in_use() {
  static std::atomic<const Level*> chosen{find("auto")};
  return chosen;
}

std::string joined() {
  std::string names;
  for (const Level* one : kLevels)
    if (one->runs_here()) names += (names.empty() ? "" : ",") + std::string(one->name);
  return names;
}

}  // namespace

const Level& level() { return *in_use().load(); }

bool use_level(const char* name) {
  const Level* found = find(name);
  if (found) in_use().store(found);
  return found != nullptr;
}

const char* level_names() {
  static const std::string names = joined();
  return names.c_str();
}

}  // namespace pplex
