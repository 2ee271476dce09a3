#include "telemetry/exporter.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdio>

#include "base/concat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "telemetry/train_metrics.h"

namespace moebius::telemetry {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Body of GET /metrics from this machine.
std::string scrape(int port, const std::string& path = "/metrics") {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return "no connection";
  const std::string request = "GET " + path + " HTTP/1.0\r\nHost: localhost\r\n\r\n";
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer;
  std::array<char, 4096> buffer;
  for (ssize_t count; (count = read(fd, buffer.data(), buffer.size())) > 0;)
    answer.append(buffer.data(), count);
  close(fd);
  const size_t body = answer.find("\r\n\r\n");
  return body == std::string::npos ? answer : answer.substr(body + 4);
}

void fill(TrainMetrics& metrics) {
  metrics.loss.set(2.25);
  metrics.step.set(7);
  metrics.tokens.add(2048);
  metrics.step_seconds.observe(0.5);
  metrics.step_seconds.observe(1e9);
  metrics.expert_load(0, 3).set(1.25);
  metrics.expert_max_violation(0).set(0.25);
  metrics.router_entropy(0).set(2);
  metrics.dropped_slots(0).add(0);
  metrics.energy_joules().add(12);
  metrics.device_memory_bytes().set(1);
  metrics.validation_nats_per_byte.set(1.7);
}

TEST(Exporter, serves_the_registry_on_loopback) {
  Registry registry;
  TrainMetrics metrics(registry);
  fill(metrics);
  const Exporter exporter(registry, "0");
  ASSERT_GT(exporter.port(), 0);
  EXPECT_EQ(exporter.url(), concat("http://127.0.0.1:", exporter.port(), "/metrics"));
  const std::string text = scrape(exporter.port());
  EXPECT_THAT(text, HasSubstr("# TYPE moebius_train_loss gauge\nmoebius_train_loss 2.25\n"));
  EXPECT_THAT(text, HasSubstr("moebius_train_tokens_total 2048\n"));
  EXPECT_THAT(text, HasSubstr("moebius_expert_load{layer=\"0\",expert=\"3\"} 1.25\n"));
  EXPECT_THAT(text, HasSubstr("moebius_step_seconds_bucket{le=\"+Inf\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("moebius_step_seconds_count 2\n"));
  EXPECT_THAT(text, Not(HasSubstr("moebius_validation_loss")));  // never set
  metrics.loss.set(2);
  EXPECT_THAT(scrape(exporter.port()), HasSubstr("moebius_train_loss 2\n"));
}

TEST(Exporter, serves_a_page_that_needs_nothing_else) {
  Registry registry;
  TrainMetrics metrics(registry);
  fill(metrics);
  const Exporter exporter(registry, "0");
  const std::string page = scrape(exporter.port(), "/");
  EXPECT_THAT(page, HasSubstr("<title>Moebius</title>"));
  EXPECT_THAT(page, HasSubstr("</html>"));
  for (const char* outside : {"http:", "https:", "src=", "@import", "url("})
    EXPECT_THAT(page, Not(HasSubstr(outside)));
  EXPECT_THAT(scrape(exporter.port(), "/history.json"), HasSubstr("\"moebius_train_loss\":["));
  EXPECT_THAT(scrape(exporter.port(), "/etc/passwd"), HasSubstr("there is /, /metrics and /history.json"));
}

TEST(Exporter, promtool_finds_nothing_to_complain_about) {
  if (std::system("promtool --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "promtool is not installed";
  Registry registry;
  TrainMetrics metrics(registry);
  fill(metrics);
  const Exporter exporter(registry, "127.0.0.1:0");
  TestFolder folder;
  write_file_atomic(folder / "metrics", scrape(exporter.port()));
  const std::string command = concat("promtool check metrics < ", (folder / "metrics").string(), " > ",
                                     (folder / "report").string(), " 2>&1");
  EXPECT_EQ(std::system(command.c_str()), 0) << read_file(folder / "report");
}

TEST(Exporter, every_metric_of_training_is_documented) {
  const char* root = std::getenv("MOEBIUS_SOURCE_DIR");
  if (root == nullptr) GTEST_SKIP() << "MOEBIUS_SOURCE_DIR is not set (ctest sets it)";
  const std::string page = read_file(std::filesystem::path(root) / "docs/formats/metrics.md");
  Registry registry;
  TrainMetrics metrics(registry);
  fill(metrics);
  for (Gauge* gauge : {&metrics.learning_rate, &metrics.gradient_norm, &metrics.tokens_per_second,
                       &metrics.validation_loss, &metrics.resident_bytes, &metrics.peak_resident_bytes}) {
    gauge->set(1);
  }
  for (const Family& family : registry.collect())
    EXPECT_THAT(page, HasSubstr("| `" + family.name)) << family.help;
}

TEST(Exporter, port_in_use_is_named_with_the_way_out) {
  Registry registry;
  const Exporter first(registry, "0");
  const auto text = message_of<UserError>([&] { Exporter(registry, std::to_string(first.port())); });
  EXPECT_EQ(
      text,
      concat("cannot serve metrics on 127.0.0.1:", first.port(), ": port ", first.port(),
             " is in use; choose another --metrics-port (0 takes a free one) or stop what listens there"));
}

TEST(Exporter, malformed_addresses_are_refused) {
  Registry registry;
  for (const char* address : {"", "abc", "70000", "-1", "host:", ":9100", "9100x"}) {
    EXPECT_THAT(message_of<UserError>([&] { Exporter(registry, address); }),
                HasSubstr(concat("--metrics-port '", address, "' is no address; use PORT or HOST:PORT")));
  }
  EXPECT_THAT(message_of<UserError>([&] { Exporter(registry, "nowhere:0"); }),
              HasSubstr("'nowhere' is no IP address"));
  EXPECT_THAT(message_of<UserError>([&] { Exporter(registry, "192.0.2.1:0"); }),
              HasSubstr("choose an address of this machine"));
}

}  // namespace
}  // namespace moebius::telemetry
