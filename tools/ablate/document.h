// A report, as Markdown and as HTML.
#pragma once

#include <string>
#include <vector>

namespace weft {

class Document {
 public:
  void heading(int level, const std::string& text);
  void paragraph(const std::string& text);
  void list(const std::vector<std::string>& items);
  // The first column is text, the others are numbers.
  void table(const std::vector<std::string>& head, const std::vector<std::vector<std::string>>& rows);
  void picture(const std::string& file, const std::string& caption);  // a file beside the report
  void code(const std::string& text);

  const std::string& markdown() const { return markdown_; }
  std::string html(const std::string& title) const;  // a whole page, whose pictures are files beside it

 private:
  std::string markdown_, html_;
};

}  // namespace weft
