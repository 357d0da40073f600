#include "team.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace gancomp {
namespace {

// Long enough for the others to finish the piece they are at; then the core is given to whoever else wants it.
constexpr int kSpins = 4000;

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Done>
void spin_until(Done done) {
  for (int i = 0; !done(); ++i) {
    if (i < kSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace

struct Team::Crew {
  explicit Crew(Team& team) {
    workers.reserve(team.size_ - 1);
    try {
      for (int thread = 1; thread < team.size_; ++thread)
        workers.emplace_back([this, &team, thread] { team.work(*this, thread); });
    } catch (...) {
      // The system gives no more threads: those that exist have to end before the exception leaves.
      dismiss();
      throw;
    }
  }
  ~Crew() { dismiss(); }

  void dismiss() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stop = true;
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
    workers.clear();
  }

  alignas(64) std::atomic<uint64_t> call{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;
};

Team::Team(int threads)
    : size_(threads), shares_(new Share[threads]), process_(getpid()), crew_(std::make_unique<Crew>(*this)) {}

Team::~Team() {
  // Nobody is there to be joined, and a condition variable that seems to have sleepers cannot be destroyed.
  if (process_ != getpid()) static_cast<void>(crew_.release());
}

void Team::after_fork() {
  const pid_t process = getpid();
  if (process_ == process) return;
  std::unique_ptr<Crew> fresh = std::make_unique<Crew>(*this);
  static_cast<void>(crew_.release());
  crew_ = std::move(fresh);
  process_ = process;
}

void Team::hand_out(int64_t pieces) {
  for (int thread = 0; thread < size_; ++thread) {
    shares_[thread].next.store(pieces * thread / size_, std::memory_order_relaxed);
    shares_[thread].end = pieces * (thread + 1) / size_;
  }
}

void Team::run(int64_t pieces, void (*body)(void*, int), void* argument) {
  hand_out(pieces);
  body_ = body;
  argument_ = argument;
  running_.store(size_ - 1, std::memory_order_relaxed);
  {
    // Under the lock, so that a worker about to sleep cannot miss it.
    std::lock_guard<std::mutex> lock(crew_->mutex);
    crew_->call.fetch_add(1, std::memory_order_release);
  }
  crew_->wake.notify_all();
  body(argument, 0);
  spin_until([this] { return running_.load(std::memory_order_acquire) == 0; });
}

int64_t Team::take(int thread) {
  for (int i = 0; i < size_; ++i) {
    Share& share = shares_[thread + i < size_ ? thread + i : thread + i - size_];
    if (share.next.load(std::memory_order_relaxed) >= share.end) continue;
    const int64_t piece = share.next.fetch_add(1, std::memory_order_relaxed);
    if (piece < share.end) return piece;
  }
  return -1;
}

bool Team::next_step(int64_t pieces) {
  const uint64_t step = step_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    hand_out(pieces);
    step_.store(step + 1, std::memory_order_release);
    return true;
  }
  spin_until([&] { return step_.load(std::memory_order_acquire) != step; });
  return false;
}

void Team::work(Crew& crew, int thread) {
  uint64_t seen = 0;
  for (;;) {
    for (int i = 0; i < kSpins && crew.call.load(std::memory_order_acquire) == seen && !crew.stop; ++i) relax();
    if (crew.call.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(crew.mutex);
      crew.wake.wait(lock, [&] { return crew.stop || crew.call.load(std::memory_order_acquire) != seen; });
    }
    if (crew.stop) return;
    seen = crew.call.load(std::memory_order_acquire);
    body_(argument_, thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

int default_threads() {
  if (const char* text = std::getenv("GANCOMP_NUM_THREADS")) {
    char* end = nullptr;
    const long threads = std::strtol(text, &end, 10);
    if (end != text && *end == '\0' && threads > 0) return static_cast<int>(std::min(threads, 256l));
  }
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 256);
}

}  // namespace gancomp
