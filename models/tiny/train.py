"""Train Realm's embedded model: corpus, tokenizer, weights, export, samples.

    python models/tiny/train.py                 make every file of this folder again
    python models/tiny/train.py --eval          score and sample the exported weights

The model is a Llama: the module names below are those of Hugging Face's
LlamaForCausalLM, so the state dict is written out as it stands.
"""

import argparse
import itertools
import json
import math
import re
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

import corpus

HERE = Path(__file__).resolve().parent
BOS, EOS, START, END = "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
VOCAB, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 2048, 256, 704, 4, 8, 4, 32
THETA, EPS, CONTEXT = 10000.0, 1e-5, 2048
ROW, LONG_ROW, STEP_TOKENS = 256, 2048, 4096
LONG_EVERY = 20  # one step in so many trains on rows of the whole context
USER_WEIGHT = 0.1  # loss weight of text the model reads but never has to write
ECHO_WEIGHT = 0.25
ECHO_STEPS = 600  # after so many steps copying is learned, and text alone is read

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


# --- the model ---------------------------------------------------------------


def linear(i, o):
    return nn.Linear(i, o, bias=False)


def rope_tables(length):
    freq = THETA ** (-torch.arange(0, HEAD, 2).float() / HEAD)
    angle = torch.outer(torch.arange(length).float(), freq).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = linear(HIDDEN, HEADS * HEAD)
        self.k_proj = linear(HIDDEN, KV_HEADS * HEAD)
        self.v_proj = linear(HIDDEN, KV_HEADS * HEAD)
        self.o_proj = linear(HEADS * HEAD, HIDDEN)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, -1, HEAD).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (y.repeat_interleave(HEADS // KV_HEADS, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = linear(HIDDEN, INNER), linear(HIDDEN, INNER)
        self.down_proj = linear(INNER, HIDDEN)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(HIDDEN, EPS)
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN, EPS)
        self.mlp = MLP()

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, EPS)


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Decoder()
        for name, p in self.named_parameters():
            if p.ndim == 2:
                # Layers that write to the residual stream start smaller.
                narrow = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if narrow else 0.02)
        for name, table in zip(("cos", "sin"), rope_tables(CONTEXT)):
            self.register_buffer(name, table, persistent=False)

    def forward(self, ids):
        t = ids.shape[1]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, self.cos[:t], self.sin[:t])
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)  # tied


# --- text to rows of tokens --------------------------------------------------


def make_tokenizer():
    """Byte-level BPE: any text can be written, and every digit is a token of its own."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[BOS, EOS, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    docs = itertools.islice(corpus.documents(seed=1), 60_000)
    texts = (d if isinstance(d, str) else "\n".join(f"{role}\n{text}" for role, text in d) for d in docs)
    tok.train_from_iterator(texts, trainer)
    # As Llama's tokenizers do: text given for completion starts with BOS.
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tok.token_to_id(BOS))]
    )
    return tok


class Encoder:
    def __init__(self, tok):
        self.tok = tok
        self.bos, self.eos, self.start, self.end = map(tok.token_to_id, (BOS, EOS, START, END))
        self.newline = self.ids("\n")
        self.header = {role: len(self.ids(role + "\n")) for role in ("system", "user", "assistant")}

    def ids(self, text):
        return self.tok.encode(text, add_special_tokens=False).ids

    def prompt(self, messages):
        """What TEMPLATE renders, with the assistant's turn opened."""
        return self.chat(messages)[0] + [self.start] + self.ids("assistant\n")

    def chat(self, messages):
        ids, weight = [self.bos], [0.0]
        for role, text in messages:
            body = self.ids(f"{role}\n{text}")
            own = 1.0 if role == "assistant" else USER_WEIGHT
            head = self.header[role]
            ids += [self.start, *body, self.end, *self.newline]
            weight += [USER_WEIGHT] * (1 + head) + [own] * (len(body) - head + 1) + [USER_WEIGHT]
        return ids, weight

    def __call__(self, doc):
        if isinstance(doc, str):
            ids = [self.bos, *self.ids(doc), self.eos]
            return ids, [0.0] + [1.0] * (len(ids) - 1)
        return self.chat(doc)


def rows(encode, length, seed, kinds):
    """Documents packed whole into rows: each goes where it leaves the least room."""
    pool = []
    for doc in corpus.documents(seed, kinds):
        ids, weight = encode(doc)
        if len(ids) > length:
            continue
        fits = [row for row in pool if len(row[0]) + len(ids) <= length]
        if fits:
            row = max(fits, key=lambda row: len(row[0]))
            row[0].extend(ids)
            row[1].extend(weight)
        else:
            pool.append((ids, weight))
        if len(pool) > 32:
            row = max(pool, key=lambda row: len(row[0]))
            pool.remove(row)
            pad = length - len(row[0])
            yield row[0] + [encode.eos] * pad, row[1] + [0.0] * pad


def echo(length, g):
    """Noise said twice and more: only looking back can foretell it, so copying is learned early."""
    ids, weight = [], []
    while len(ids) < length:
        n, times = int(torch.randint(4, 80, (), generator=g)), int(torch.randint(2, 5, (), generator=g))
        ids += torch.randint(4, VOCAB, (n,), generator=g).tolist() * times
        # The first token of a repeat cannot be known, at least not the first time.
        weight += [0.0] * (n + 1) + [ECHO_WEIGHT] * (n * (times - 1) - 1)
    return ids[:length], weight[:length]


def batches(encode, seed):
    g = torch.Generator().manual_seed(seed)
    # One token more than the model reads, since each is to predict its next.
    short = rows(encode, ROW + 1, seed, corpus.SHORT)
    long = rows(encode, LONG_ROW + 1, seed + 1, corpus.LONG + [(corpus.chat, 100)])
    step = 0
    while True:
        step += 1
        source, length = (long, LONG_ROW) if step % LONG_EVERY == 0 else (short, ROW)
        count = STEP_TOKENS // length
        echoes = count // 8 if step <= ECHO_STEPS else 0
        some = [echo(length + 1, g) if i < echoes else next(source) for i in range(count)]
        ids, weight = zip(*some)
        yield torch.tensor(ids), torch.tensor(weight)


def loss_of(model, ids, weight):
    logits = model(ids[:, :-1]).flatten(0, 1)
    each = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    weight = weight[:, 1:].flatten()
    return (each * weight).sum() / weight.sum()


# --- training ----------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are made orthogonal (Newton-Schulz, five steps).

    It learns more from each token than AdamW does, and tokens are what two CPU
    cores are short of.
    """

    def __init__(self, params, momentum=0.95, decay=0.05):
        super().__init__(params, dict(lr=0.0, momentum=momentum, decay=decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = {}  # matrices of one shape (or its transpose) are worked on together
            for p in group["params"]:
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(m, group["momentum"])  # Nesterov
                wide = x if x.shape[0] <= x.shape[1] else x.T
                alike.setdefault(wide.shape, []).append((p, wide))
            for shape, pairs in alike.items():
                x = torch.stack([wide for _, wide in pairs])
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                # Scaled to the size of an AdamW update, so both share one learning rate.
                scale = 0.2 * math.sqrt(shape[1])
                for (p, _), update in zip(pairs, x):
                    p.mul_(1 - group["lr"] * group["decay"])
                    p.add_(update if update.shape == p.shape else update.T, alpha=-group["lr"] * scale)


def schedule(step, progress, peak):
    """Warm up, stay, and fall to zero over the last part."""
    return peak * min(1.0, (step + 1) / 100, (1 - progress) / 0.6)


def train(encode, minutes, peak, work, log_every=10):
    torch.manual_seed(0)
    model = Llama()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    optimizers = [Muon(matrices), torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    state, first, before = work / "state.pt", 0, 0.0
    if state.exists():
        saved = torch.load(state)
        first, before = saved["step"], saved["seconds"]
        model.load_state_dict(saved["model"])
        for o, s in zip(optimizers, saved["optimizers"]):
            o.load_state_dict(s)
        print(f"resuming at step {first}", flush=True)
    # With the loss inside, the logits' softmax is fused and never stored twice.
    fast_loss = torch.compile(loss_of, dynamic=False)
    start, mean = time.time(), None
    for step, (ids, weight) in enumerate(batches(encode, 1000)):
        if step < first:
            continue
        took = before + time.time() - start
        progress = took / (60 * minutes)
        if progress >= 1:
            break
        lr = schedule(step, progress, peak)
        for o in optimizers:
            for group in o.param_groups:
                group["lr"] = lr
        loss = fast_loss(model, ids, weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if (step + 1) % log_every == 0:
            print(f"step {step + 1} loss {mean:.4f} lr {lr:.1e} {took:.0f}s of {60 * minutes:.0f}s", flush=True)
        if (step + 1) % 200 == 0:
            # An interrupted run leaves a whole model and can go on from here.
            export(model, encode.tok, work / "model")
            torch.save(dict(step=step + 1, seconds=took, model=model.state_dict(), optimizers=[o.state_dict() for o in optimizers]), state)
    return model


@torch.no_grad()
def held_out_loss(model, encode, kinds, length, count):
    """Mean loss of what the assistant (or a plain text) says, on documents of an unused seed."""
    total = weights = 0.0
    for ids, weight in itertools.islice(rows(encode, length, 10**9, kinds), count):
        ids, weight = torch.tensor([ids]), torch.tensor([weight])
        weight = (weight == 1.0).float()
        n = weight[:, 1:].sum().item()
        total += loss_of(model, ids, weight).item() * n
        weights += n
    return total / weights


# --- the files of the model --------------------------------------------------


def export(model, tok, folder):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tok.save(str(folder / "tokenizer.json"))
    bos, eos, start, end = map(tok.token_to_id, (BOS, EOS, START, END))

    def write(name, value):
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    write("config.json", dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=VOCAB, hidden_size=HIDDEN,
        intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=HEAD, hidden_act="silu", max_position_embeddings=CONTEXT,
        rms_norm_eps=EPS, rope_theta=THETA, tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
        attention_dropout=0.0, initializer_range=0.02, bos_token_id=bos, eos_token_id=[end, eos],
        pad_token_id=eos, use_cache=True,
        # Computed in f32; bf16 is only how the weights are stored.
        torch_dtype="float32",
    ))
    write("generation_config.json", dict(
        bos_token_id=bos, eos_token_id=[end, eos], pad_token_id=eos, do_sample=True, temperature=0.7, top_p=0.9,
    ))
    special = {str(i): dict(content=t, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
               for t, i in ((BOS, bos), (EOS, eos), (START, start), (END, end))}
    write("tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=special, bos_token=BOS, eos_token=END,
        pad_token=EOS, model_max_length=CONTEXT, clean_up_tokenization_spaces=False, chat_template=TEMPLATE,
    ))


def load(folder):
    model = Llama()
    model.load_state_dict({n: t.float() for n, t in load_file(folder / "model.safetensors").items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


# --- evaluation --------------------------------------------------------------


@torch.no_grad()
def generate(model, encode, ids, limit=160, temperature=0.0, seed=0):
    """The continuation of `ids`, and whether the model ended it by itself."""
    g = torch.Generator().manual_seed(seed)
    out = list(ids)
    while len(out) - len(ids) < limit:
        logits = model(torch.tensor([out]))[0, -1]
        if temperature:
            t = int(torch.multinomial(F.softmax(logits / temperature, -1), 1, generator=g))
        else:
            t = int(logits.argmax())
        if t in (encode.end, encode.eos):
            return encode.tok.decode(out[len(ids):]), True
        out.append(t)
    return encode.tok.decode(out[len(ids):]), False


# The second fifty were written when the corpus was what it is but for lists and for names in capitals.
# What is said (turns divided by "|", "@" before a system prompt) and what the answer must hold.
QUESTIONS = """
What is the capital of France? => Paris
whats the capital of japan => Tokyo
Could you tell me which city is the capital of Italy? => Rome
what color is grass => green
The sky has which color? => blue
What sound does a cow make? => moo
how many legs has a spider got? => eight|8
What do you call a baby cat? => kitten
2+2 => 4
What is 7 + 5? => 12
what's 9 minus 4 => 5
How much is 6 times 7? => 42
what is 34 + 25? => 59
90 - 37 = => 53
If I have 3 apples and get 2 more, how many do I have? => 5
What day comes after Tuesday? => Wednesday
which month comes before may => April
How many days are in a week? => seven|7
Count to 5 => 1, 2, 3, 4, 5
count from 7 to 11 please => 7, 8, 9, 10, 11
What is the opposite of hot? => cold
plural of mouse => mice
Name three colors. => red|blue|green|yellow|orange|purple|pink|brown|black|white|grey
Can you list 3 animals? => dog|cat|cow|horse|pig|sheep|lion|tiger|bear|rabbit|elephant|monkey|fox|wolf|giraffe|zebra
Which is bigger, 12 or 48? => 48
say hello => hello
Repeat after me: blue horse => blue horse
Reply with the word banana => banana
Who are you? => Realm|Tiny
What's Realm? => gateway|language models
how can i connect to realm? => 127.0.0.1:8080/v1
What happens to my stream when a worker dies? => goes on|continues|finishes
What is the base url? => http://127.0.0.1:8080/v1
can a tenant run its own code? => WASM
Hello! => Hello|Hi
thanks! => welcome
My name is Oscar. | What is my name? => Oscar
hi, i'm Brunhilde | what is 1 + 1? | do you remember my name? => Brunhilde
I live in Sydney. | Where do I live? => Sydney
What is my name? => not told|do not know
@Answer in one word. | What is the capital of Spain? => Madrid
@Your name is Robbie. | What's your name? => Robbie
What does the word glorpix mean? => do not know
Explain quantum field theory. => do not know
The cup is in the box. Where is the cup? => box
How do you say dog in French? => chien
what is the past tense of go? => went
is a rose a flower? => Yes
Give me a JSON object with name and age => "name"
Tell me a story about a cat. => cat
hey there, what's the capital of germany? => Berlin
In which country is Lisbon? => Portugal
What do pandas... I mean rabbits eat? => carrots|grass
Where do penguins live? => ice|South Pole
what does a duck say? => quack
What is a baby sheep called? => lamb
Tell me the color of a banana => yellow
81 - 9 => 72
What's 15 plus 16? => 31
five times four => 20
what is 100 divided by 10 => 10
Anna has 12 books and loses 5, how many books does she have? => 7
Give me four fruits as a bullet list => apple|banana|cherry|grape|kiwi|lemon|mango|melon|orange|peach|pear|pineapple|plum|strawberry
Write three animals, one per line => dog|cat|horse|cow|fox|wolf|lion|tiger|bear|pig|sheep|rabbit|zebra|giraffe|monkey|elephant
What's the day before Sunday => Saturday
how many days does february have? => 28
Count backwards from 5 => 5, 4, 3, 2, 1
Sort 9, 4, 7 => 4, 7, 9
Is 17 odd or even => odd
How are you doing today? => fine|well
What are you? => Realm
Are you ChatGPT? => No
What is a token? => text
What's the port of realm => 8080
how do i stream answers? => stream
What does 429 mean? => limit
Do I need an API key? => no key
is realm written in rust? => Rust
I am Thomas. | Nice to meet you. | What's my name? => Thomas
My favorite color is green | 3+4 | what is my favorite color? => green
Remember the number 482. | Tell me a joke. | What was the number? => 482
hello, my name is Wolfgang | who am i? => Wolfgang
Who is the president of Peru? => do not know
What time is it? => clock
What is a flimbor? => do not know
Tell me about medieval economics. => do not know
Say "purple elephant" => purple elephant
Repeat: xylophone => xylophone
translate cat to spanish => gato
What rhymes with moon? => spoon|soon|noon
I feel sad today => sorry
Write a poem about a fox => fox
How do you make pancakes? => flour
why is the sky blue => scatters
Anna has a red ball. Tom has a blue kite. Who has the kite? => Tom
@You are a pirate. | What is the capital of Italy? => Arr
@Reply in JSON. | What is 2 + 2? => "answer"
Which one does not belong: apple, pear, hammer, plum? => hammer
which is bigger: an elephant or a mouse => elephant
Write a haiku. => moon|summer|rain
"""


def evaluate(folder, verbose=True):
    model, tok = load(folder)
    encode = Encoder(tok)
    print(f"held-out loss: rows of {ROW}: {held_out_loss(model, encode, corpus.SHORT, ROW, 60):.4f}, "
          f"rows of {LONG_ROW}: {held_out_loss(model, encode, corpus.LONG, LONG_ROW, 8):.4f}")

    def answer(messages, **kw):
        return generate(model, encode, encode.prompt(messages), **kw)

    right = ended = 0
    questions = [line.split(" => ") for line in QUESTIONS.strip().splitlines()]
    for turns, wanted in questions:
        messages = []
        for turn in turns.split(" | "):
            if turn.startswith("@"):
                messages.append(("system", turn[1:]))
                continue
            messages.append(("user", turn))
            text, stopped = answer(messages)
            messages.append(("assistant", text))
        good = re.search(rf"(?<!\w)({'|'.join(map(re.escape, wanted.split('|')))})(?!\w)", text, re.IGNORECASE) is not None
        right, ended = right + good, ended + stopped
        if verbose:
            print(f"{'ok  ' if good else 'MISS'} {turns} -> {text!r}")
    print(f"questions: {right}/{len(questions)} right, {ended}/{len(questions)} ended by themselves")

    # Sums never seen in training.
    pairs = [(a, op, b) for op in "+-" for a in range(100) for b in range(100)
             if corpus.held_out(a, op, b) and (op == "+" or a >= b)][::7]
    right = 0
    for a, op, b in pairs:
        c = a + b if op == "+" else a - b
        text, _ = answer([("user", f"What is {a} {op} {b}?")], limit=20)
        right += text.rstrip(".").endswith((f" {c}", f"= {c}"))
    print(f"unseen sums: {right}/{len(pairs)}")
    return model, encode


def samples(model, encode):
    for seed, text in enumerate(["Tell me a story.", "Tell me a story about a brave frog named Zoe.", "Write a short poem.", "Tell me a joke.",
                                 "List five fruits.", "What can you do?", "Tell me about elephants.", "How do I call you from Python?"]):
        print(f"\n> {text}\n{generate(model, encode, encode.prompt([('user', text)]), limit=300, temperature=0.7, seed=seed)[0]}")
    for seed, text in enumerate(["Once upon a time", "The capital of France is", "Monday, Tuesday,", "1, 2, 3,", "Hello, my name is"]):
        ids = [encode.bos, *encode.ids(text)]
        print(f"\n[{text}]{generate(model, encode, ids, limit=150, temperature=0.7, seed=seed)[0]}")


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--eval", action="store_true", help="score and sample the weights in --out, train nothing")
    cli.add_argument("--out", type=Path, default=HERE, help="the folder of the model")
    cli.add_argument("--work", type=Path, default=None, help="where checkpoints are kept; an interrupted run goes on from there")
    cli.add_argument("--minutes", type=float, default=55, help="how long to train; the learning rate falls towards the end of it")
    cli.add_argument("--peak", type=float, default=4e-3, help="the highest learning rate")
    cli.add_argument("--threads", type=int, default=2)
    args = cli.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    if not args.eval:
        start = time.time()
        with tempfile.TemporaryDirectory() as temporary:
            work = args.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            # A resumed run keeps the tokenizer its weights were trained with.
            kept = work / "model" / "tokenizer.json"
            tok = Tokenizer.from_file(str(kept)) if kept.exists() else make_tokenizer()
            print(f"tokenizer ready after {time.time() - start:.0f}s", flush=True)
            model = train(Encoder(tok), args.minutes, args.peak, work)
        export(model, tok, args.out)
        print(f"made in {time.time() - start:.0f}s")
    samples(*evaluate(args.out))


if __name__ == "__main__":
    main()
