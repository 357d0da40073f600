// Drives a libFuzzer target where there is no libFuzzer: replays files, then mutates them for some time. It knows nothing of
// coverage, so that it only finds what is near its seeds; takes libFuzzer's options of the same names.
//
//   fuzz_model_file [-max_total_time=SECONDS] [-seed=N] FILE_OR_FOLDER...
//
// With a crash the input lies in ./crash-input.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed);

// Of the sanitizers' runtime, if there is one.
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));
// Larger allocations than any small file justifies end the program.
extern "C" const char* __asan_default_options() { return "max_allocation_size_mb=64"; }

namespace {

using Bytes = std::vector<uint8_t>;
using Clock = std::chrono::steady_clock;

constexpr size_t kMaxSize = 1 << 16;
constexpr unsigned kSecondsPerInput = 5;

Bytes current;
std::mt19937 random_source;

// Words of the format, by what may stand for what.
const std::vector<std::vector<std::string>> words = {
    {"F32", "F16", "BF16", "I64"},
    {"unet", "resnet"},
    {"instance_affine", "instance", "batch", "none"},
    {"reflect", "replicate", "zero"},
    {"true", "false", "null", "0", "-1", "1", "4294967296", "18446744073709551615", "9223372036854775808", "1e9", "0.5", "[]",
     "{}"},
    {"dtype", "shape", "data_offsets", "__metadata__", "hidden", "norm", "weight", "bias"},
    {"[", "]", "{", "}", ",", ":", "\"", "\\u0000", "\xEF\xBB\xBF"},
};

size_t below(size_t limit) { return random_source() % limit; }

const std::string& any_of(const std::vector<std::string>& group) { return group[below(group.size())]; }

// Replaces the first word at or behind a position by one that may stand there: a file of another type or option.
void replace_word(Bytes& bytes, size_t at) {
  for (; at < bytes.size(); ++at) {
    const auto here = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    for (const std::vector<std::string>& group : words) {
      for (const std::string& word : group) {
        if (word.size() > bytes.size() - at || !std::equal(word.begin(), word.end(), here)) continue;
        const auto behind = bytes.erase(here, here + static_cast<std::ptrdiff_t>(word.size()));
        const std::string& other = any_of(group);
        bytes.insert(behind, other.begin(), other.end());
        return;
      }
    }
  }
}

void save_current() {
  std::FILE* const file = std::fopen("crash-input", "wb");
  if (file == nullptr) return;
  std::fwrite(current.data(), 1, current.size(), file);
  std::fclose(file);
  std::fprintf(stderr, "the input is in ./crash-input\n");
}

void on_signal(int number) {
  std::fprintf(stderr, "%s\n", strsignal(number));
  save_current();
  _exit(1);
}

void run(const Bytes& input) {
  current = input;
  // In memory of exactly its size: a vector has spare room behind its end, where no sanitizer would see a read.
  const std::unique_ptr<uint8_t[]> exact(new uint8_t[input.size()]);
  std::copy(input.begin(), input.end(), exact.get());
  alarm(kSecondsPerInput);
  LLVMFuzzerTestOneInput(exact.get(), input.size());
  alarm(0);
}

Bytes read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

}  // namespace

// One small change: what the custom mutator of the target asks for.
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size) {
  Bytes bytes(data, data + size);
  const size_t at = below(size + 1), length = size == at ? 0 : 1 + below(std::min<size_t>(size - at, 40));
  const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(at), end = begin + static_cast<std::ptrdiff_t>(length);
  switch (below(7)) {
    case 0:
      if (length > 0) bytes[at] ^= static_cast<uint8_t>(1 << below(8));
      break;
    case 1:
      if (length > 0) bytes[at] = static_cast<uint8_t>(random_source());
      break;
    case 2:
      bytes.erase(begin, end);
      break;
    case 3: {
      const Bytes copy(begin, end);
      const auto target = bytes.begin() + static_cast<std::ptrdiff_t>(below(size + 1));
      bytes.insert(target, copy.begin(), copy.end());
      break;
    }
    case 4: {
      const std::string& word = any_of(words[below(words.size())]);
      bytes.insert(begin, word.begin(), word.end());
      break;
    }
    case 5:
      replace_word(bytes, at);
      break;
    default:
      // A digit: most numbers of the header stay numbers.
      for (size_t i = at; i < size; ++i) {
        if (bytes[i] < '0' || bytes[i] > '9') continue;
        bytes[i] = static_cast<uint8_t>('0' + below(10));
        break;
      }
  }
  const size_t result = std::min(bytes.size(), max_size);
  std::copy_n(bytes.begin(), result, data);
  return result;
}

int main(int argc, char** argv) {
  double seconds = 0;
  std::vector<Bytes> seeds;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("-max_total_time=", 0) == 0) {
      seconds = std::strtod(argument.c_str() + 16, nullptr);
    } else if (argument.rfind("-seed=", 0) == 0) {
      random_source.seed(static_cast<unsigned>(std::strtoul(argument.c_str() + 6, nullptr, 10)));
    } else if (std::filesystem::is_directory(argument)) {
      for (const auto& entry : std::filesystem::directory_iterator(argument)) seeds.push_back(read_file(entry.path()));
    } else if (std::filesystem::is_regular_file(argument)) {
      seeds.push_back(read_file(argument));
    } else {
      std::fprintf(stderr, "%s: neither an option nor a file\n", argv[i]);
      return 2;
    }
  }
  if (seeds.empty()) {
    std::fprintf(stderr, "usage: %s [-max_total_time=SECONDS] [-seed=N] FILE_OR_FOLDER...\n", argv[0]);
    return 2;
  }
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(save_current);
  for (const int number : {SIGABRT, SIGALRM}) signal(number, on_signal);

  for (const Bytes& seed : seeds) run(seed);
  const Clock::time_point start = Clock::now();
  size_t runs = seeds.size();
  Bytes input;
  while (std::chrono::duration<double>(Clock::now() - start).count() < seconds) {
    input = seeds[below(seeds.size())];
    for (size_t changes = 1 + below(4); changes > 0; --changes) {
      const size_t used = std::min(input.size(), kMaxSize);
      input.resize(kMaxSize);
      input.resize(LLVMFuzzerCustomMutator(input.data(), used, kMaxSize, static_cast<unsigned>(random_source())));
    }
    run(input);
    ++runs;
  }
  std::printf("%zu inputs, no failure\n", runs);
  return 0;
}
