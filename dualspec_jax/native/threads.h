// Work shared by the threads of XLA's pool.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

// Calls task(i) once for each i in [0, n), on this thread and whichever of the pool's are free; returns when all are done.
inline void parallel_for(xla::ffi::ThreadPool& pool, int64_t n, std::function<void(int64_t)> task) {
  struct Shared {
    std::function<void(int64_t)> task;
    int64_t n;
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;

    void work() {
      for (int64_t i; (i = next.fetch_add(1)) < n;) {
        task(i);
        std::lock_guard<std::mutex> lock(mutex);
        if (++done == n) all_done.notify_one();
      }
    }
  };
  // A thread that comes late finds nothing left to do: nobody waits for it, so it shares the ownership.
  auto shared = std::make_shared<Shared>();
  shared->task = std::move(task);
  shared->n = n;
  for (int64_t helper = 1; helper < std::min<int64_t>(n, pool.num_threads()); ++helper)
    pool.Schedule([shared] { shared->work(); });
  shared->work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == n; });
}

// What a handler returns that has done its work.
inline xla::ffi::Future done() {
  xla::ffi::Promise promise;
  xla::ffi::Future future(promise);
  promise.SetAvailable();
  return future;
}

// Calls task(i) once for each i in [0, n), on threads of the pool; returns at once. All that the task needs is copied into it.
inline xla::ffi::Future start_parallel(xla::ffi::ThreadPool& pool, int64_t n, std::function<void(int64_t)> task) {
  struct Shared {
    std::function<void(int64_t)> task;
    int64_t n;
    std::atomic<int64_t> next{0}, done{0};
    xla::ffi::Promise promise;
  };
  auto shared = std::make_shared<Shared>();
  shared->task = std::move(task);
  shared->n = n;
  xla::ffi::Future future(shared->promise);
  for (int64_t worker = 0; worker < std::min<int64_t>(n, std::max<int64_t>(1, pool.num_threads())); ++worker)
    pool.Schedule([shared] {
      for (int64_t i; (i = shared->next.fetch_add(1)) < shared->n;) {
        shared->task(i);
        if (shared->done.fetch_add(1) + 1 == shared->n) shared->promise.SetAvailable();
      }
    });
  return future;
}
