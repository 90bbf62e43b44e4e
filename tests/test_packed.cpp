// Training on packed documents and with states carried from batch to batch: what the batches are, that runs go on bit for bit,
// who refuses.
#include <gtest/gtest.h>

#include <fstream>
#include <memory>

#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tests/words_text.h"
#include "tools/data/shards.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<std::int64_t>;

// Documents of several lengths, and a tokenizer that knows where they end.
struct Documented {
  TempFolder folder;
  Corpus corpus;
  Tokenizer tokenizer;
  Documented() : corpus(load_corpus(write())), tokenizer(make_tokenizer({.name = "unigram", .vocabulary = 275}, corpus)) {}
  fs::path write() const {
    const std::string text = words_text(12000);
    std::string lines;
    for (std::size_t at = 0, n = 3; at < text.size(); at += n, n = n * 7 % 173 + 1) {
      std::string document = text.substr(at, n);
      for (char& c : document)
        if (c == '\n') c = ' ';
      lines += "{\"text\": \"" + document + "\"}\n";
    }
    return folder.write("d.jsonl", lines);
  }
};

const Documented& documented() {
  static const Documented d;
  return d;
}

std::shared_ptr<TokenStream> stream(const BatchOptions& o) {
  return std::make_shared<TokenStream>(documented().corpus, documented().tokenizer, o);
}

TEST(Packed, ADocumentBeginsWithTheEndOfTextBeforeIt) {
  const BatchOptions o{.batch = 4, .length = 60, .seed = 2, .packed = true};
  const std::int64_t end = documented().tokenizer.end_of_text();
  std::int64_t borders = 0;
  const auto check = [&](const Batch& batch) {
    const Ids inputs = batch.inputs.to_host<std::int64_t>(), segments = batch.segments.to_host<std::int64_t>();
    ASSERT_EQ(batch.segments.shape(), batch.inputs.shape());
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const bool first = i % std::size_t(o.length) == 0;
      ASSERT_EQ(segments[i], first ? 0 : segments[i - 1] + (inputs[i] == end)) << i;
      borders += !first && inputs[i] == end;
    }
  };
  const auto packed = stream(o);
  for (int i = 0; i < 3; ++i) check(packed->next());
  for (std::int64_t i = 0; i < packed->validation_batches(); ++i) check(packed->validation(i));
  EXPECT_GT(borders, 20);
  // The tokens are those of a run that is not packed.
  BatchOptions whole = o;
  whole.packed = false;
  packed->seek(0);
  const Batch a = packed->next(), b = stream(whole)->next();
  EXPECT_EQ(a.inputs.to_host<std::int64_t>(), b.inputs.to_host<std::int64_t>());
  EXPECT_EQ(a.targets.to_host<std::int64_t>(), b.targets.to_host<std::int64_t>());
  EXPECT_EQ(a.counted, b.counted);
  EXPECT_FALSE(b.segments);
  expect_error(ErrorKind::usage, {"where documents end is not in the tokens", "bytes", "--tokenizer unigram"},
               [&] { TokenStream(documented().corpus, Tokenizer::bytes(), o); });
}

TEST(Packed, ShardsHoldDocumentsAsTheTextDoes) {
  const TempFolder folder;
  const ShardFolder shards = ShardFolder::make(folder / "shards", documented().corpus, documented().tokenizer, 500);
  const BatchOptions o{.batch = 2, .length = 40, .seed = 3, .packed = true};
  TokenStream read("shards", shards.training(), shards.validation(), shards.tokenizer(), o);
  EXPECT_EQ(read.next().segments.to_host<std::int64_t>(), stream(o)->next().segments.to_host<std::int64_t>());
}

TEST(Carried, RowsGoOnWhereTheyEnded) {
  for (const bool packed : {false, true}) {
    const BatchOptions o{.batch = 3, .length = 50, .seed = 2, .packed = packed, .carry = true};
    const auto data = stream(o);
    const std::int64_t end = documented().tokenizer.end_of_text(), n = data->training_tokens().size();
    const std::int64_t windows = (n - 1) / o.batch / o.length;
    ASSERT_GT(windows, 3);
    Ids last(std::size_t(o.batch), -1);
    std::int64_t breaks = 0;
    for (std::int64_t k = 0; k < 2 * windows; ++k) {
      const Batch batch = data->next();
      const Ids inputs = batch.inputs.to_host<std::int64_t>(), targets = batch.targets.to_host<std::int64_t>(),
                on = batch.continues.to_host<std::int64_t>();
      for (std::size_t r = 0; r < std::size_t(o.batch); ++r) {
        const std::int64_t first = inputs[r * std::size_t(o.length)];
        if (k % windows == 0) {
          ASSERT_EQ(on[r], 0) << "the stretch begins anew";
        } else {
          ASSERT_EQ(first, last[r]) << k;
          ASSERT_EQ(on[r], !(packed && first == end)) << k;
          breaks += on[r] == 0;
        }
        last[r] = targets[(r + 1) * std::size_t(o.length) - 1];
      }
    }
    EXPECT_EQ(breaks > 0, packed);
  }
  expect_error(ErrorKind::io, {"text too short", "a stretch of 4000 for each of 3 rows"},
               [] { stream({.batch = 3, .length = 4000, .carry = true}); });
}

// ---- training ---------------------------------------------------------------------------------------------------------------

TrainOptions options(const std::string& model) {
  TrainOptions o;
  o.model = model;
  o.steps = 12, o.batch = 3, o.length = 24, o.lr = 5e-3, o.warmup = 3, o.seed = 7, o.accumulate = 2;
  o.packed = o.carry_state = true;
  o.model_options = {{"width", 16}, {"layers", 2}, {"state", 8}};
  if (model == "mamba2") o.model_options["head_size"] = 8;
  return o;
}

std::shared_ptr<TokenStream> data(const TrainOptions& o) {
  return stream({.batch = o.batch, .length = o.length, .seed = o.seed, .packed = o.packed, .carry = o.carry_state});
}

std::vector<double> train(Trainer& trainer, int steps) {
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) losses.push_back(trainer.step().loss);
  return losses;
}

TEST(Carried, ResumingIsBitIdentical) {
  for (const char* model : {"mamba", "mamba2"}) {
    SCOPED_TRACE(model);
    const TempFolder folder;
    const TrainOptions o = options(model);
    Trainer whole(data(o), o), first(data(o), o);
    const std::vector<double> losses = train(whole, 12);
    train(first, 5);
    first.save(folder.path());
    Trainer second = Trainer::resume(folder.path(), data(o));
    EXPECT_TRUE(second.options().carry_state && second.options().packed);
    EXPECT_EQ(std::vector<double>(losses.begin() + 5, losses.end()), train(second, 7));
    const TensorMap a = whole.model().state_dict(), b = second.model().state_dict();
    for (const auto& [name, tensor] : a) EXPECT_EQ(tensor.bytes, b.at(name).bytes) << name;

    TrainOptions apart = o;
    apart.carry_state = false;
    Trainer other(stream({.batch = o.batch, .length = o.length, .seed = o.seed, .packed = true, .carry = true}), apart);
    EXPECT_NE(train(other, 3), std::vector<double>(losses.begin(), losses.begin() + 3)) << "the states have a part in it";

    fs::remove(folder / "carried.safetensors");
    expect_error(ErrorKind::io, {"carried.safetensors"}, [&] { Trainer::resume(folder.path(), data(o)); });
  }
}

TEST(Carried, ABadStepIsForgotten) {
  TrainOptions o = options("mamba2");
  o.skip_bad_steps = 1, o.accumulate = 1;
  Trainer trainer(data(o), o);
  train(trainer, 2);
  Param w = trainer.model().parameters()[0];
  const std::vector<float> values = w.to_host<float>();
  w.set(std::vector<float>(values.size(), NAN));
  EXPECT_TRUE(trainer.step().skipped);
  w.set(values);
  const StepResult after = trainer.step();
  EXPECT_FALSE(after.skipped);
  EXPECT_TRUE(std::isfinite(after.loss));
}

TEST(Packed, WhoCannotSaysSoBeforeTheFirstStep) {
  TrainOptions o = options("mamba");
  o.model = "transformer", o.model_options = {};
  expect_error(ErrorKind::usage, {"carries no states from batch to batch", "without --carry-state"},
               [&] { Trainer(data(o), o); });
  o.model = "hymba", o.carry_state = false;
  expect_error(ErrorKind::usage, {"packed documents would see each other", "meta tokens"}, [&] { Trainer(data(o), o); });
  o.task = "induction";
  expect_error(ErrorKind::usage, {"a task has sequences of its own", "--task induction --packed"}, [&] { o.check(); });
}

// A user's own source of batches, whose segments go back.
class Falling : public BatchSource {
 public:
  Falling() : BatchSource({.batch = 2, .length = 3}) {}
  std::int64_t validation_batches() const override { return 0; }
  Batch validation(std::int64_t) const override { return training(0); }
  std::int64_t vocabulary() const override { return 5; }
  std::string name() const override { return "falling"; }
  std::uint64_t hash() const override { return 1; }

 protected:
  Batch training(std::int64_t position) const override {
    Batch batch;
    batch.inputs = batch.targets = Tensor::from(Ids(6, 1), {2, 3});
    batch.segments = Tensor::from(position ? Ids{0, 1, 1, 2, 5, 4} : Ids{4, 4, 5, 0, 1, 2}, {2, 3});
    return batch;
  }
};

TEST(Packed, SegmentsThatFallAreRefusedByTheLoader) {
  Falling source;
  EXPECT_NO_THROW(source.next());
  expect_error(ErrorKind::io, {"falling: the segments of a batch fall", "4 after 5 in row 1, at 2"}, [&] { source.next(); });
}

}  // namespace
}  // namespace weft
