// A fixed group of threads that go through a list of steps together.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>

namespace gancomp {

// The calling thread is thread 0 of the team; the others wait for work, spinning for a moment and then asleep.
//
// Inside run() the work of a step is handed out in pieces: every thread begins with its own share, in order, so that it meets
// data that it wrote itself in the step before, and takes from the others when its share is done.
class Team {
 public:
  explicit Team(int threads);  // at least 1
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Starts the threads again where this process was forked off the one that had started them: threads are not forked. Not while
  // the team runs, in either process.
  void after_fork();

  // Calls body(argument, thread) once on every thread and returns when all are back. `pieces`: of the first step.
  void run(int64_t pieces, void (*body)(void* argument, int thread), void* argument);

  // The next piece of the current step for `thread`, or -1 when none is left. Only inside run().
  int64_t take(int thread);

  // Waits until every thread is here, and begins a step of `pieces` (the same on every thread). Returns whether this thread was
  // the last to arrive: what it did before and what it will do before it arrives again, the last one of the next step knows.
  // Only inside run().
  bool next_step(int64_t pieces);

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  struct Crew;  // the threads, and what wakes them up

  void hand_out(int64_t pieces);
  void work(Crew& crew, int thread);

  const int size_;
  std::unique_ptr<Share[]> shares_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint64_t> step_{0};
  std::atomic<int> running_{0};
  void (*body_)(void*, int) = nullptr;
  void* argument_ = nullptr;
  pid_t process_;  // that the crew lives in
  std::unique_ptr<Crew> crew_;
};

// Threads to use where nobody says: GANCOMP_NUM_THREADS, or else the processors this process may run on.
int default_threads();

}  // namespace gancomp
