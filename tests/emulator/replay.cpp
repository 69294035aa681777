// Runs calls of an emulated operator in a process of its own, every operand in memory of exactly its size, for the address
// sanitizer. Follows the sources of an operator (tests/emulated.py); fastsal::Call stands for its struct.
//
// Reads calls until the standard input ends: seed, threads (int64 each); the Call; the number of buffers; for each of them
// its offset in the Call, by how many bytes it misses an alignment of 16, its size, its contents. Answers each with the
// length of the emulator's message and the message; where there is none, with the contents of all buffers.
#include <unistd.h>

namespace {

bool take(void* to, size_t size) { return size == 0 || fread(to, size, 1, stdin) == 1; }

int64_t take_number() {
  int64_t number = 0;
  if (!take(&number, sizeof number)) std::abort();
  return number;
}

struct Buffer {
  std::unique_ptr<unsigned char[]> memory;
  int64_t shift, size;
  unsigned char* begin() const { return memory.get() + shift; }
};

}  // namespace

int main() {
  int64_t seed;
  while (take(&seed, sizeof seed)) {
    const int64_t threads = take_number();
    fastsal::Call call;
    if (!take(&call, sizeof call)) std::abort();
    std::vector<Buffer> buffers{size_t(take_number())};
    for (Buffer& buffer : buffers) {
      const int64_t field = take_number();
      buffer.shift = take_number();
      buffer.size = take_number();
      buffer.memory.reset(new unsigned char[size_t(buffer.shift + buffer.size)]);
      if (!take(buffer.begin(), size_t(buffer.size))) std::abort();
      unsigned char* const begin = buffer.begin();
      std::memcpy(reinterpret_cast<char*>(&call) + field, &begin, sizeof begin);
    }
    const std::string message = run(&call, uint64_t(seed), unsigned(threads), nullptr, 0, 0);
    const int64_t length = int64_t(message.size());
    fwrite(&length, sizeof length, 1, stdout);
    if (length) fwrite(message.data(), message.size(), 1, stdout);
    for (const Buffer& buffer : buffers)
      if (!length && buffer.size) fwrite(buffer.begin(), size_t(buffer.size), 1, stdout);
    fflush(stdout);
  }
  return 0;
}
