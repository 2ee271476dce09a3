#include "data/chat/expression_parser.h"

#include <charconv>
#include <set>

#include "base/error.h"

namespace moebius::data::chat {
namespace {

constexpr int kMaxDepth = 100;
constexpr int kMaxParts = 4000;  // of one tag: they are walked by recursion

using Kind = Expression::Kind;

}  // namespace

// Counts how deep expressions are nested.
struct ExpressionParser::Depth {
  explicit Depth(ExpressionParser& parser) : parser(parser) {
    if (++parser.depth_ > kMaxDepth) parser.fail("expressions are nested too deep");
  }
  ~Depth() { --parser.depth_; }
  ExpressionParser& parser;
};

bool ExpressionParser::is_operator(const char* text) const {
  return peek().kind == Token::Kind::kOperator && peek().text == text;
}

void ExpressionParser::expect(const char* text) {
  if (!take_operator(text)) fail(concat("expected '", text, "', found ", found()));
}

std::string ExpressionParser::expect_name() {
  if (peek().kind != Token::Kind::kName) fail("expected a name, found " + found());
  return take().text;
}

void ExpressionParser::expect_end() {
  if (!at_end()) fail("did not expect " + found());
}

ExpressionPtr ExpressionParser::tuple() {
  ExpressionPtr first = expression();
  if (!is_operator(",")) return first;
  ExpressionPtr list = make(Kind::kTuple);
  list->operands.push_back(std::move(first));
  while (take_operator(",") && !at_end()) list->operands.push_back(expression());
  return list;
}

ExpressionPtr ExpressionParser::expression() {
  const Depth depth(*this);
  ExpressionPtr value = either();
  while (take_word("if")) {
    ExpressionPtr condition = make(Kind::kCondition);
    condition->operands.push_back(either());
    condition->operands.push_back(std::move(value));
    condition->operands.push_back(take_word("else") ? expression() : nullptr);
    value = std::move(condition);
  }
  return value;
}

ExpressionPtr ExpressionParser::either() {
  ExpressionPtr left = both();
  while (take_word("or")) left = binary(std::move(left), "or", both());
  return left;
}

ExpressionPtr ExpressionParser::make(Expression::Kind kind) {
  if (++count_ > kMaxParts) fail("an expression has more than 4000 parts");
  auto made = std::make_unique<Expression>();
  made->kind = kind;
  made->line = peek().line;
  return made;
}

ExpressionPtr ExpressionParser::binary(ExpressionPtr left, std::string name, ExpressionPtr right) {
  ExpressionPtr made = make(Kind::kBinary);
  made->name = std::move(name);
  made->operands.push_back(std::move(left));
  made->operands.push_back(std::move(right));
  return made;
}

ExpressionPtr ExpressionParser::both() {
  ExpressionPtr left = negation();
  while (take_word("and")) left = binary(std::move(left), "and", negation());
  return left;
}

ExpressionPtr ExpressionParser::negation() {
  const Depth depth(*this);
  if (!is_word("not")) return comparison();
  ExpressionPtr made = make(Kind::kUnary);
  made->name = take().text;
  made->operands.push_back(negation());
  return made;
}

ExpressionPtr ExpressionParser::comparison() {
  const size_t begin = at_;
  ExpressionPtr left = sum();
  ExpressionPtr all;
  size_t last = begin;
  for (;;) {
    std::string name;
    if (peek().kind == Token::Kind::kOperator &&
        std::set<std::string>{"==", "!=", "<", ">", "<=", ">="}.contains(peek().text)) {
      name = take().text;
    } else if (take_word("in")) {
      name = "in";
    } else if (is_word("not") && at_ + 1 < tokens_.size() && tokens_[at_ + 1].text == "in") {
      take();
      take();
      name = "not in";
    } else {
      return all ? std::move(all) : std::move(left);
    }
    const size_t right_begin = at_;
    ExpressionPtr right = sum();
    if (!left) left = again(last);
    ExpressionPtr one = binary(std::move(left), name, std::move(right));
    left = nullptr;
    last = right_begin;
    all = all ? binary(std::move(all), "and", std::move(one)) : std::move(one);
  }
}

ExpressionPtr ExpressionParser::again(size_t begin) {
  const size_t end = at_;
  at_ = begin;
  ExpressionPtr value = sum();
  at_ = end;
  return value;
}

ExpressionPtr ExpressionParser::sum() {
  ExpressionPtr left = concatenation();
  while (is_operator("+") || is_operator("-")) {
    const std::string name = take().text;
    left = binary(std::move(left), name, concatenation());
  }
  return left;
}

ExpressionPtr ExpressionParser::concatenation() {
  ExpressionPtr left = product();
  while (take_operator("~")) left = binary(std::move(left), "~", product());
  return left;
}

ExpressionPtr ExpressionParser::product() {
  ExpressionPtr left = power();
  while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
    const std::string name = take().text;
    left = binary(std::move(left), name, power());
  }
  return left;
}

ExpressionPtr ExpressionParser::power() {
  ExpressionPtr left = unary(true);
  while (take_operator("**")) left = binary(std::move(left), "**", unary(true));
  return left;
}

ExpressionPtr ExpressionParser::unary(bool with_filters) {
  const Depth depth(*this);
  ExpressionPtr value;
  if (is_operator("-") || is_operator("+")) {
    value = make(Kind::kUnary);
    value->name = take().text;
    value->operands.push_back(unary(false));
  } else {
    value = primary();
  }
  value = postfix(std::move(value));
  return with_filters ? filters(std::move(value)) : std::move(value);
}

ExpressionPtr ExpressionParser::constant(Value value) {
  ExpressionPtr made = make(Kind::kConstant);
  made->value = std::move(value);
  return made;
}

ExpressionPtr ExpressionParser::primary() {
  const Token token = peek();
  switch (token.kind) {
    case Token::Kind::kString: {
      std::string text = take().text;
      while (peek().kind == Token::Kind::kString) text += take().text;
      return constant(std::move(text));
    }
    case Token::Kind::kInteger: {
      take();
      int64_t value = 0;
      const auto [end, error] =
          std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
      if (error != std::errc()) fail("the number " + token.text + " is too large");
      return constant(value);
    }
    case Token::Kind::kReal:
      return take(), constant(std::stod(token.text));
    case Token::Kind::kName:
      return name();
    case Token::Kind::kOperator:
      break;
    case Token::Kind::kEnd:
      fail("expected an expression, found the end of the tag");
  }
  if (take_operator("(")) {
    if (take_operator(")")) return make(Kind::kTuple);
    ExpressionPtr inner = expression();
    if (is_operator(",")) {
      ExpressionPtr list = make(Kind::kTuple);
      list->operands.push_back(std::move(inner));
      while (take_operator(",") && !is_operator(")")) list->operands.push_back(expression());
      inner = std::move(list);
    }
    expect(")");
    return inner;
  }
  if (take_operator("[")) {
    ExpressionPtr list = make(Kind::kList);
    while (!is_operator("]")) {
      list->operands.push_back(expression());
      if (!take_operator(",")) break;
    }
    expect("]");
    return list;
  }
  if (take_operator("{")) {
    ExpressionPtr dict = make(Kind::kDict);
    while (!is_operator("}")) {
      dict->operands.push_back(expression());
      expect(":");
      dict->operands.push_back(expression());
      if (!take_operator(",")) break;
    }
    expect("}");
    return dict;
  }
  fail("did not expect " + found());
}

ExpressionPtr ExpressionParser::name() {
  ExpressionPtr made = make(Kind::kName);
  made->name = take().text;
  if (made->name == "true" || made->name == "True") return constant(true);
  if (made->name == "false" || made->name == "False") return constant(false);
  if (made->name == "none" || made->name == "None") return constant(Value::none());
  return made;
}

ExpressionPtr ExpressionParser::postfix(ExpressionPtr value) {
  for (;;) {
    ExpressionPtr made = make(Kind::kAttribute);
    if (take_operator(".")) {
      made->operands.push_back(std::move(value));
      if (peek().kind == Token::Kind::kInteger) {
        made->kind = Kind::kItem;
        made->operands.push_back(primary());
      } else {
        made->name = expect_name();
      }
    } else if (take_operator("[")) {
      made->operands.push_back(std::move(value));
      subscript(*made);
    } else if (take_operator("(")) {
      made->kind = Kind::kCall;
      made->operands.push_back(std::move(value));
      arguments(*made);
    } else {
      return value;
    }
    value = std::move(made);
  }
}

void ExpressionParser::subscript(Expression& made) {
  made.kind = Kind::kItem;
  const auto bound = [&] {
    made.operands.push_back(is_operator(":") || is_operator("]") ? nullptr : expression());
  };
  bound();
  while (made.operands.size() < 4 && take_operator(":")) {
    made.kind = Kind::kSlice;
    bound();
  }
  if (made.kind == Kind::kSlice) {
    made.operands.resize(4);
  } else if (!made.operands[1]) {
    fail("expected an index, found " + found());
  }
  expect("]");
}

void ExpressionParser::arguments(Expression& made) {
  while (!is_operator(")")) {
    if (peek().kind == Token::Kind::kName && at_ + 1 < tokens_.size() &&
        tokens_[at_ + 1].kind == Token::Kind::kOperator && tokens_[at_ + 1].text == "=") {
      std::string name = take().text;
      take();
      made.named.emplace_back(std::move(name), expression());
    } else {
      if (!made.named.empty()) fail("an argument without a name follows one with a name");
      made.operands.push_back(expression());
    }
    if (!take_operator(",")) break;
  }
  expect(")");
}

ExpressionPtr ExpressionParser::filters(ExpressionPtr value) {
  for (;;) {
    ExpressionPtr made = make(Kind::kFilter);
    if (take_operator("|")) {
      made->name = expect_name();
      made->operands.push_back(std::move(value));
      if (take_operator("(")) arguments(*made);
    } else if (take_word("is")) {
      made->kind = Kind::kTest;
      made->negative = take_word("not");
      made->name = expect_name();
      made->operands.push_back(std::move(value));
      test_arguments(*made);
    } else if (is_operator("(") || is_operator("[") || is_operator(".")) {
      value = postfix(std::move(value));
      continue;
    } else {
      return value;
    }
    value = std::move(made);
  }
}

void ExpressionParser::test_arguments(Expression& made) {
  if (take_operator("(")) return arguments(made);
  const Token& next = peek();
  const bool value =
      next.kind == Token::Kind::kString || next.kind == Token::Kind::kInteger ||
      next.kind == Token::Kind::kReal || is_operator("[") ||
      (next.kind == Token::Kind::kName &&
       !std::set<std::string>{"and", "or", "else", "if", "in", "is", "not"}.contains(next.text));
  if (value) made.operands.push_back(postfix(primary()));
}

}  // namespace moebius::data::chat
