// The expressions of one tag of a template, by recursive descent; precedence as in Jinja.
#pragma once

#include <string>
#include <vector>

#include "data/chat/lexer.h"
#include "data/chat/syntax.h"

namespace moebius::data::chat {

class ExpressionParser {
 public:
  ExpressionParser(const std::vector<Token>& tokens, const std::string& where)
      : tokens_(tokens), where_(where) {}

  const Token& peek() const { return tokens_[at_]; }
  const Token& take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool at_end() const { return peek().kind == Token::Kind::kEnd; }
  bool is_operator(const char* text) const;
  bool is_word(const char* text) const { return peek().kind == Token::Kind::kName && peek().text == text; }
  bool take_operator(const char* text) { return is_operator(text) && (take(), true); }
  bool take_word(const char* text) { return is_word(text) && (take(), true); }

  [[noreturn]] void fail(const std::string& reason) const { Location{&where_, peek().line}.fail(reason); }
  void expect(const char* text);
  std::string expect_name();
  void expect_end();
  std::string found() const { return at_end() ? "the end of the tag" : "'" + peek().text + "'"; }

  // What may stand alone in a tag: an expression, or several with commas as a tuple.
  ExpressionPtr tuple();
  ExpressionPtr expression();
  // Without `x if y else z`, so that the `if` of a for stays: {% for x in items if x.y %}.
  ExpressionPtr either();

 private:
  struct Depth;

  ExpressionPtr make(Expression::Kind kind);
  ExpressionPtr binary(ExpressionPtr left, std::string name, ExpressionPtr right);
  ExpressionPtr constant(Value value);

  // From loosely binding to tightly.
  ExpressionPtr both();
  ExpressionPtr negation();
  // a < b < c is (a < b) and (b < c); the middle is walked twice, which no template can tell.
  ExpressionPtr comparison();
  ExpressionPtr again(size_t begin);
  ExpressionPtr sum();
  ExpressionPtr concatenation();
  ExpressionPtr product();
  ExpressionPtr power();
  ExpressionPtr unary(bool with_filters);
  ExpressionPtr filters(ExpressionPtr value);
  ExpressionPtr postfix(ExpressionPtr value);
  ExpressionPtr primary();
  ExpressionPtr name();

  // After the opening bracket.
  void subscript(Expression& made);
  void arguments(Expression& made);
  // `x is divisibleby 3` and `x is divisibleby(3)`.
  void test_arguments(Expression& made);

  const std::vector<Token>& tokens_;
  const std::string& where_;
  size_t at_ = 0;
  int depth_ = 0, count_ = 0;
};

}  // namespace moebius::data::chat
