#include "tools/cli/interrupt.h"

#include <signal.h>

namespace quire::tools {
namespace {

volatile sig_atomic_t interrupted = 0;

void on_signal(int) {
  interrupted = 1;
  // The next one, of either kind, does what it does by default.
  ::signal(SIGINT, SIG_DFL);
  ::signal(SIGTERM, SIG_DFL);
}

}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_signal;  // no SA_RESTART: a blocked write must return
  // The second signal waits until the handler has made it deadly.
  sigaddset(&action.sa_mask, SIGINT);  // a macro on macOS
  sigaddset(&action.sa_mask, SIGTERM);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

bool is_interrupted() {
  return interrupted != 0;
}

void throw_if_interrupted() {
  if (is_interrupted()) {
    throw Interrupted();
  }
}

}  // namespace quire::tools
