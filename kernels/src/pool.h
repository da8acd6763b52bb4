// Threads that share work.
#pragma once

#include <cstddef>

namespace pplex {

// Runs task(data, i) for each i below `count`, on any threads, and returns when all are done.
struct Pool {
  void* context;
  void (*run)(void* context, void (*task)(void* data, size_t i), size_t count, void* data);
};

}  // namespace pplex
