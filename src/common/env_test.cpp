#include "common/env.h"

#include <doctest/doctest.h>

#include <map>
#include <stdexcept>
#include <string>

#include "quire/runtime.h"

namespace quire {
namespace {

Env parse(const std::map<std::string, std::string>& variables) {
  return parse_env([&](const char* name) -> const char* {
    const auto it = variables.find(name);
    return it == variables.end() ? nullptr : it->second.c_str();
  });
}

TEST_CASE("env: unset and empty variables give the defaults") {
  for (const bool empty : {false, true}) {
    std::map<std::string, std::string> variables;
    if (empty) {
      for (const EnvVariable& v : env_variables()) {
        variables[v.name] = "";
      }
    }
    const Env e = parse(variables);
    CHECK(e.native_paged_kernel == NativeKernelEnv::Auto);
    CHECK_FALSE(e.checks);
    CHECK(e.num_threads == 0);
    CHECK(e.cpu_isa.empty());
    CHECK(e.num_splits == 0);
    CHECK(e.log.empty());
  }
}

TEST_CASE("env: values are read") {
  CHECK(
      parse({{"QUIRE_NATIVE_PAGED_KERNEL", "off"}}).native_paged_kernel ==
      NativeKernelEnv::Off);
  CHECK(
      parse({{"QUIRE_NATIVE_PAGED_KERNEL", "on"}}).native_paged_kernel ==
      NativeKernelEnv::On);
  CHECK(
      parse({{"QUIRE_NATIVE_PAGED_KERNEL", "auto"}}).native_paged_kernel ==
      NativeKernelEnv::Auto);
  CHECK(parse({{"QUIRE_CHECKS", "1"}}).checks);
  CHECK_FALSE(parse({{"QUIRE_CHECKS", "0"}}).checks);
  CHECK(parse({{"QUIRE_NUM_THREADS", "1024"}}).num_threads == 1024);
  CHECK(parse({{"QUIRE_CPU_ISA", "avx2"}}).cpu_isa == "avx2");
  CHECK(parse({{"QUIRE_NUM_SPLITS", "7"}}).num_splits == 7);
  CHECK(parse({{"QUIRE_LOG", "debug"}}).log == "debug");
}

TEST_CASE("env: what cannot be used throws, with name, choices and value") {
  const std::map<std::string, std::string> bad = {
      {"QUIRE_NATIVE_PAGED_KERNEL", "ON"},
      {"QUIRE_CHECKS", "2"},
      {"QUIRE_NUM_THREADS", "0"},
      {"QUIRE_CPU_ISA", "sse"},
      {"QUIRE_NUM_SPLITS", "-1"},
      {"QUIRE_LOG", "verbose"},
  };
  CHECK(bad.size() == env_variables().size());
  for (const auto& variable : bad) {
    const auto& name = variable.first;
    const auto& value = variable.second;
    CAPTURE(name);
    std::string message;
    try {
      parse({{name, value}});
    } catch (const std::invalid_argument& e) {
      message = e.what();
    }
    CHECK(message.find("[env] " + name + " must be") == 0);
    CHECK(message.find("got \"" + value + "\".") != std::string::npos);
  }
  for (const char* number : {" 1", "1 ", "1.0", "0x1", "99999999999"}) {
    CAPTURE(number);
    CHECK_THROWS_AS(
        parse({{"QUIRE_NUM_THREADS", number}}), std::invalid_argument);
  }
}

TEST_CASE("env: every variable is listed with its effect") {
  for (const EnvVariable& v : env_variables()) {
    CAPTURE(v.name);
    CHECK(v.name.find("QUIRE_") == 0);
    CHECK_FALSE(v.value.empty());
    CHECK_FALSE(v.effect.empty());
  }
}

}  // namespace
}  // namespace quire
