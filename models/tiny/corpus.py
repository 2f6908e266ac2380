"""The text the embedded model is trained on, all of it generated here.

Nothing is quoted and nothing is downloaded: facts stand in the tables below,
and small grammars phrase them. In a phrase, "(a|b|c)" is a choice and "{x}" a
slot. The same seed always gives the same corpus.

A document is either a string (plain text, for completion) or a list of
(role, text) messages (a chat).
"""

import json
import random
import re
import string

# --- phrases -----------------------------------------------------------------

CHOICE = re.compile(r"\(([^()]*)\)")


def say(r, phrase, **slots):
    """One way of saying `phrase`: choices taken, slots filled, spaces tidied."""
    while "(" in phrase:
        phrase = CHOICE.sub(lambda m: r.choice(m[1].split("|")), phrase)
    phrase = re.sub(r" +", " ", phrase).strip()
    return phrase.format(**slots) if slots else phrase


def cap(s):
    return s[:1].upper() + s[1:]


def an(noun):
    return ("an " if noun[0] in "aeiou" and not noun.startswith(("uni", "use")) else "a ") + noun


def join(items, word="and"):
    items = list(items)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" {word} " + items[-1]


SHORTER = [
    ("what is ", "what's "), ("What is ", "What's "), ("who is ", "who's "), ("where is ", "where's "),
    ("do not ", "don't "), ("does not ", "doesn't "), ("cannot ", "can't "), ("I am ", "I'm "),
    ("it is ", "it's "), ("you are ", "you're "), ("how is ", "how's "), ("let us ", "let's "), ("can not ", "can't "),
]


def typo(r, s):
    """A slip of the keyboard in one longer word."""
    words = s.split(" ")
    long = [i for i, w in enumerate(words) if len(w) > 4 and w.isalpha()]
    if long:
        i = r.choice(long)
        w, k = words[i], r.randrange(1, len(words[i]) - 1)
        words[i] = r.choice([w[:k] + w[k + 1:], w[:k] + w[k] + w[k:], w[:k] + w[k + 1] + w[k] + w[k + 2:]])
    return " ".join(words)


# The tables below write questions small; these words many people do not.
SPELLED = {w.lower(): w for w in (
    "I API GPU CPU SDK WASM KV URL LLM AI HTTP JSON USA OpenAI Python Rust Linux Realm ChatGPT GPT Claude Gemini Llama French Spanish German English "
    "Alan Turing Isaac Newton Ada Lovelace Tiny"
).split()}
SMALL = re.compile(r"\b(" + "|".join(SPELLED) + r")\b(?![-_])")


def ask(r, q):
    """A question as strangers type it: with or without case, marks, contractions and manners."""
    if r.random() < 0.35:
        for a, b in SHORTER:
            q = q.replace(a, b)
    x = r.random()
    if x < 0.05:
        q = r.choice(["hey, ", "hi, ", "hello, ", "hi! ", "hello! ", "ok, ", "okay, ", "so ", "and ", "well, ", "now ", "hmm, ", "one more: "]) + q
    elif x < 0.09 and q.endswith("?"):
        q = r.choice(["quick question: ", "question: ", "tell me, ", "tell me: ", "please tell me: ", "i want to know: ", "answer this: ", "please answer: ", "do you know ", "can you tell me ", "i wonder, ", "can you tell me: "]) + q
    elif x < 0.14:
        q = re.sub(r"([?.!]?)$", r.choice([", please", " please", ", thanks"]) + r"\1", q, count=1)
    elif x < 0.18 and q.endswith("."):
        q = r.choice(["please ", "could you please ", "can you please ", "i want you to ", "i would like you to ", "can you ", "could you ", "would you "]) + q
    if r.random() < 0.015:
        q = typo(r, q)
    x = r.random()
    if x < 0.28:
        q = q.lower()
    elif x < 0.285:
        q = q.upper()
    elif x < 0.95:
        q = cap(q)
    if r.random() < 0.6:
        q = SMALL.sub(lambda m: SPELLED[m[0]], q)
    x = r.random()
    if x < 0.3:
        q = q.rstrip("?.")
    elif x < 0.33:
        q = q.rstrip("?.") + r.choice(["??", "!", "...", " ?", " !"])
    return q


# --- tables ------------------------------------------------------------------


def rows(text):
    return [[f.strip() for f in line.split(",")] for line in text.strip().splitlines()]


# name, sound, legs, young, home, food, colour, size, what it can do
ANIMALS = {a[0]: a[1:] for a in rows("""
dog, woof, 4, puppy, a kennel, meat and bones, brown, medium, run and bark
cat, meow, 4, kitten, a house, fish and meat, grey, small, climb and jump
cow, moo, 4, calf, a barn, grass, black and white, big, give milk
horse, neigh, 4, foal, a stable, hay and grass, brown, big, run fast
pig, oink, 4, piglet, a sty, corn and roots, pink, medium, dig in the mud
sheep, baa, 4, lamb, a field, grass, white, medium, give wool
goat, maa, 4, kid, a farm, grass and leaves, white, medium, climb on rocks
duck, quack, 2, duckling, a pond, water plants and insects, brown, small, swim and fly
hen, cluck, 2, chick, a coop, seeds and grain, red, small, lay eggs
goose, honk, 2, gosling, a pond, grass and seeds, white, medium, swim and fly
bird, tweet, 2, chick, a nest, seeds and worms, blue, small, fly and sing
owl, hoo, 2, owlet, a hollow tree, mice, brown, small, see in the dark
frog, ribbit, 4, tadpole, a pond, flies, green, small, jump and swim
lion, roar, 4, cub, the savanna, meat, yellow, big, run and roar
tiger, roar, 4, cub, the jungle, meat, orange and black, big, swim and hunt
bear, growl, 4, cub, a cave, honey and fish and berries, brown, big, climb and sleep all winter
wolf, howl, 4, pup, a den, meat, grey, medium, run far
fox, yip, 4, kit, a den, mice and berries, red, medium, hide and run
elephant, trumpet, 4, calf, the savanna, leaves and grass, grey, very big, lift trees with its trunk
monkey, chatter, 2, infant, the jungle, fruit, brown, medium, climb trees
mouse, squeak, 4, pup, a hole, seeds and cheese, grey, very small, hide
rabbit, squeak, 4, bunny, a burrow, carrots and grass, white, small, hop
bee, buzz, 6, larva, a hive, nectar, yellow and black, very small, make honey
snake, hiss, 0, snakelet, a hole, mice, green, medium, slide
crow, caw, 2, chick, a nest, seeds and insects, black, small, fly and solve puzzles
whale, song, 0, calf, the sea, krill and fish, blue, very big, dive deep
dolphin, click, 0, calf, the sea, fish, grey, big, jump and swim
fish, blub, 0, fry, the water, small water animals, silver, small, swim
shark, nothing, 0, pup, the sea, fish, grey, big, swim fast
spider, nothing, 8, spiderling, a web, flies, black, very small, spin a web
ant, nothing, 6, larva, an anthill, leaves and crumbs, black, very small, carry heavy things
butterfly, nothing, 6, caterpillar, a garden, nectar, orange, very small, fly from flower to flower
turtle, nothing, 4, hatchling, a pond, plants, green, small, hide in its shell
penguin, honk, 2, chick, the ice, fish, black and white, medium, swim but not fly
giraffe, hum, 4, calf, the savanna, leaves, yellow and brown, very big, reach high leaves
zebra, bark, 4, foal, the savanna, grass, black and white, big, run fast
camel, grunt, 4, calf, the desert, dry plants, brown, big, go days without water
kangaroo, click, 2, joey, the grassland, grass, brown, big, jump far
crocodile, growl, 4, hatchling, a river, fish and meat, green, big, swim and bite
squirrel, chatter, 4, kit, a tree, nuts, red, small, climb and jump
hedgehog, snuffle, 4, hoglet, a garden, insects, brown, small, roll into a ball
deer, bleat, 4, fawn, the forest, grass and leaves, brown, big, run and leap
parrot, squawk, 2, chick, the jungle, fruit and seeds, green, small, talk
octopus, nothing, 8, larva, the sea, crabs, red, medium, change its color
eagle, screech, 2, eaglet, a mountain nest, fish and rabbits, brown, medium, fly high
""")}

# country, capital, continent, language
COUNTRIES = {c[0]: c[1:] for c in rows("""
France, Paris, Europe, French
Germany, Berlin, Europe, German
Italy, Rome, Europe, Italian
Spain, Madrid, Europe, Spanish
Portugal, Lisbon, Europe, Portuguese
England, London, Europe, English
Ireland, Dublin, Europe, English and Irish
the United Kingdom, London, Europe, English
Austria, Vienna, Europe, German
Switzerland, Bern, Europe, German and French and Italian
Belgium, Brussels, Europe, Dutch and French
the Netherlands, Amsterdam, Europe, Dutch
Denmark, Copenhagen, Europe, Danish
Sweden, Stockholm, Europe, Swedish
Norway, Oslo, Europe, Norwegian
Finland, Helsinki, Europe, Finnish
Iceland, Reykjavik, Europe, Icelandic
Poland, Warsaw, Europe, Polish
Hungary, Budapest, Europe, Hungarian
Greece, Athens, Europe, Greek
Ukraine, Kyiv, Europe, Ukrainian
Russia, Moscow, Europe and Asia, Russian
Turkey, Ankara, Asia and Europe, Turkish
Egypt, Cairo, Africa, Arabic
Kenya, Nairobi, Africa, Swahili and English
Nigeria, Abuja, Africa, English
Morocco, Rabat, Africa, Arabic
India, New Delhi, Asia, Hindi and English
China, Beijing, Asia, Chinese
Japan, Tokyo, Asia, Japanese
South Korea, Seoul, Asia, Korean
Thailand, Bangkok, Asia, Thai
Israel, Jerusalem, Asia, Hebrew
the United States, Washington, North America, English
the USA, Washington, North America, English
Canada, Ottawa, North America, English and French
Mexico, Mexico City, North America, Spanish
Brazil, Brasilia, South America, Portuguese
Argentina, Buenos Aires, South America, Spanish
Chile, Santiago, South America, Spanish
Peru, Lima, South America, Spanish
Australia, Canberra, Oceania, English
New Zealand, Wellington, Oceania, English
""")}

KINDS = {k: v.split() for k, v in (line.split(": ") for line in """
fruit: apple banana orange pear grape lemon cherry peach plum strawberry mango melon kiwi pineapple
vegetable: carrot potato tomato onion cucumber pepper cabbage pea bean spinach pumpkin lettuce broccoli
color: red blue green yellow orange purple pink brown black white grey
animal: dog cat cow horse pig sheep lion tiger bear rabbit elephant monkey fox wolf giraffe zebra
bird: owl crow duck goose swan eagle parrot penguin dove hen
insect: bee ant fly butterfly beetle wasp
flower: rose tulip daisy lily sunflower violet
tree: oak pine birch maple willow apple-tree
drink: water milk juice tea coffee lemonade cocoa
food: bread cheese rice soup pasta pizza salad egg cake sandwich
tool: hammer saw screwdriver spade rake drill wrench
vehicle: car bus train bike truck boat plane tram ship
shape: circle square triangle rectangle star oval
instrument: piano guitar violin drum flute trumpet harp
sport: football tennis swimming running basketball hockey golf
planet: Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune
season: spring summer autumn winter
room: kitchen bedroom bathroom hall attic cellar
job: teacher doctor baker farmer pilot nurse cook driver painter gardener
metal: iron gold silver copper tin steel
language: English French German Spanish Italian Chinese Japanese Arabic
country: France Germany Italy Spain Japan India Brazil Canada Egypt Kenya
city: Paris London Berlin Rome Madrid Tokyo Cairo Oslo Lima
continent: Africa Asia Europe Oceania Antarctica
sense: sight hearing smell taste touch
toy: ball doll kite puzzle blocks teddy robot
furniture: table chair bed sofa shelf desk lamp
clothing: shirt hat coat sock shoe scarf glove dress
pet: dog cat rabbit hamster goldfish parrot
letter: A B C D E F G H I J K L M
number: one two three four five six seven eight nine ten
day: Monday Tuesday Wednesday Thursday Friday Saturday Sunday
month: January February March April May June July August September October November December
""".strip().splitlines())}
PLURALS = {"country": "countries", "city": "cities", "clothing": "clothes", "furniture": "pieces of furniture", "food": "foods"}
DAYS, MONTHS = KINDS["day"], KINDS["month"]
MONTH_DAYS = dict(zip(MONTHS, [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]))
MONTH_SEASON = dict(zip(MONTHS, "winter winter spring spring spring summer summer summer autumn autumn autumn winter".split()))
SEASON = {
    "spring": "flowers grow and birds build nests", "summer": "it is hot and the days are long",
    "autumn": "leaves turn red and fall", "winter": "it is cold and snow may fall",
}
WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()
TENS = dict(zip(range(20, 100, 10), "twenty thirty forty fifty sixty seventy eighty ninety".split()))
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()

COLORS_OF = dict(rows("""
sky, blue
sun, yellow
grass, green
snow, white
milk, white
coal, black
blood, red
banana, yellow
lemon, yellow
tomato, red
strawberry, red
cherry, red
carrot, orange
orange, orange
pumpkin, orange
leaf, green
frog, green
sea, blue
night, black
chocolate, brown
egg, white
cloud, white
rose, red
plum, purple
grape, purple
pig, pink
elephant, grey
mouse, grey
cucumber, green
broccoli, green
fire truck, red
tree trunk, brown
sand, yellow
gold, yellow
ice, white
raven, black
lettuce, green
pea, green
moon, white
honey, golden
rice, white
corn, yellow
polar bear, white
stop sign, red
"""))
MASS = {"grass", "snow", "milk", "coal", "blood", "chocolate", "sand", "gold", "ice", "honey", "rice", "lettuce", "broccoli", "corn"}
THE = {"sky", "sun", "sea", "night", "moon"}

OPPOSITES = [tuple(p) for p in rows("""
hot, cold
big, small
up, down
day, night
good, bad
fast, slow
happy, sad
old, young
light, dark
left, right
open, closed
full, empty
high, low
long, short
wet, dry
hard, soft
loud, quiet
early, late
rich, poor
strong, weak
black, white
yes, no
in, out
on, off
first, last
clean, dirty
near, far
thick, thin
heavy, light
new, old
true, false
win, lose
start, stop
push, pull
give, take
love, hate
buy, sell
ask, answer
come, go
laugh, cry
north, south
east, west
summer, winter
begin, end
sweet, sour
tall, short
above, below
inside, outside
before, after
always, never
brave, afraid
easy, difficult
smooth, rough
wide, narrow
awake, asleep
friend, enemy
front, back
top, bottom
cheap, expensive
right, wrong
""")]

IRREGULAR = dict(rows("""
mouse, mice
goose, geese
foot, feet
tooth, teeth
child, children
man, men
woman, women
sheep, sheep
fish, fish
leaf, leaves
wolf, wolves
knife, knives
baby, babies
city, cities
box, boxes
bus, buses
fox, foxes
cherry, cherries
person, people
ox, oxen
"""))
PAST = dict(rows("""
go, went
see, saw
eat, ate
run, ran
sing, sang
swim, swam
fly, flew
give, gave
take, took
come, came
make, made
write, wrote
read, read
sleep, slept
drink, drank
buy, bought
think, thought
find, found
say, said
tell, told
have, had
is, was
do, did
know, knew
sit, sat
stand, stood
win, won
lose, lost
walk, walked
play, played
jump, jumped
look, looked
help, helped
begin, began
break, broke
speak, spoke
"""))
RHYMES = [line.split() for line in """
cat hat bat mat rat
dog fog log frog
sun fun run bun
tree bee sea key
star car far jar
moon spoon soon noon
night light kite white
day play way say
ring sing king wing
house mouse
ball tall wall fall
rain train plane
boat goat coat note
bear chair pear hair
snow go toe slow
book look cook hook
bed red head bread
sky fly pie high
blue shoe two zoo
cake lake snake
fish dish wish
door floor more four
hand sand land
rose nose toes
bell well shell
nest best rest
""".strip().splitlines()]

FOREIGN = {w[0]: w[1:] for w in rows("""
hello, bonjour, hola, hallo
goodbye, au revoir, adios, auf Wiedersehen
thank you, merci, gracias, danke
yes, oui, si, ja
no, non, no, nein
please, s'il vous plait, por favor, bitte
water, eau, agua, Wasser
bread, pain, pan, Brot
milk, lait, leche, Milch
cat, chat, gato, Katze
dog, chien, perro, Hund
house, maison, casa, Haus
friend, ami, amigo, Freund
red, rouge, rojo, rot
blue, bleu, azul, blau
green, vert, verde, grün
white, blanc, blanco, weiss
black, noir, negro, schwarz
one, un, uno, eins
two, deux, dos, zwei
three, trois, tres, drei
day, jour, dia, Tag
night, nuit, noche, Nacht
sun, soleil, sol, Sonne
moon, lune, luna, Mond
book, livre, libro, Buch
tree, arbre, arbol, Baum
fish, poisson, pez, Fisch
apple, pomme, manzana, Apfel
good morning, bonjour, buenos dias, guten Morgen
good night, bonne nuit, buenas noches, gute Nacht
love, amour, amor, Liebe
""")}
TONGUES = ["French", "Spanish", "German"]

# word: what it is, one more sentence
THINGS = {}
for line in """
sun | the star in the middle of our solar system | It gives us light and warmth.
moon | a ball of rock that goes around the Earth | We see it best at night.
Earth | the planet we live on | It is the third planet from the sun.
star | a very big ball of hot gas far away | At night it looks like a small light.
rain | water that falls from clouds | Plants need it to grow.
snow | frozen water that falls from the sky | It is white and cold.
ice | frozen water | It melts when it gets warm.
cloud | many tiny drops of water in the sky | Rain comes from it.
wind | moving air | It can turn windmills and fly kites.
river | a long stream of water that flows to the sea | Fish and ducks live there.
sea | a very large area of salt water | Whales and sharks live in it.
mountain | a very high hill of rock | There may be snow on its top.
forest | a large place full of trees | Deer, foxes and owls live there.
desert | a dry place with very little rain | Camels live there.
island | land with water all around it | You reach it by boat.
tree | a tall plant with a trunk and leaves | Birds build nests in it.
flower | the colorful part of a plant | Bees visit it for nectar.
book | many pages with words or pictures | You read it to learn or for fun.
school | a place where children learn | Teachers work there.
house | a building where people live | It has rooms, doors and windows.
kitchen | the room where people cook | There is an oven in it.
bridge | a road over a river or a valley | People and cars cross it.
car | a vehicle with four wheels and an engine | People drive it on roads.
train | a row of wagons pulled along rails | It stops at stations.
plane | a machine with wings that flies | A pilot flies it.
boat | a small vehicle that floats on water | You can row it or sail it.
bike | a vehicle with two wheels and pedals | You ride it with your legs.
clock | a thing that shows the time | It has two hands.
phone | a machine for talking to people far away | Most people carry one.
computer | a machine that follows instructions very fast | People use it to work, write and play.
robot | a machine that can move and do jobs | Some robots look like people.
program | a list of instructions for a computer | People write it in a programming language.
keyboard | a board with keys for typing | It has letters and numbers on it.
language model | a program that has learned to continue text | It writes one token after another.
token | a small piece of text, often a word or part of a word | Language models read and write tokens.
GPU | a chip that does very many sums at once | It makes language models fast.
CPU | the chip in a computer that runs programs | Every computer has one.
server | a computer or program that answers requests from others | Realm is a server for language models.
API | a way for programs to talk to each other | Realm offers the same API as OpenAI.
stream | an answer that arrives piece by piece | You can read it while it is being written.
memory | the part of a computer that keeps data | It is also what helps us remember.
cache | a place where a program keeps results to use again | It saves time.
friend | a person you like and trust | Friends help each other.
family | parents and children and other relatives | They often live together.
teacher | a person who helps others learn | Teachers work in schools.
doctor | a person who helps sick people | Doctors work in hospitals.
baker | a person who makes bread and cakes | Bakers get up very early.
farmer | a person who grows food and keeps animals | Farmers work on farms.
pilot | a person who flies planes | Pilots work in the air.
gardener | a person who looks after plants | Gardeners use spades and water.
bread | food made of flour and water and baked in an oven | You can eat it with butter or cheese.
cheese | food made from milk | Mice are said to love it.
honey | a sweet food made by bees | It is golden and sticky.
soup | a warm liquid food | You eat it with a spoon.
cake | a sweet food baked in an oven | People eat it on birthdays.
pizza | flat bread with tomato and cheese on top | It is baked in a hot oven.
water | a clear liquid that all living things need | It has no color and no taste.
fire | burning that gives heat and light | It is hot, so be careful.
gold | a yellow metal worth a lot of money | Rings are often made of it.
music | sounds that are nice to hear together | You can sing it or play it.
dream | a story your mind makes while you sleep | Some are nice and some are strange.
birthday | the day of the year on which you were born | Many people eat cake on it.
rainbow | an arc of colors in the sky | You see it when the sun shines through rain.
shadow | the dark shape behind something in the light | It follows you on sunny days.
map | a drawing that shows where places are | It helps you find the way.
key | a small piece of metal that opens a lock | Do not lose it.
lamp | a thing that gives light | You turn it on when it is dark.
umbrella | a thing that keeps the rain off you | You hold it over your head.
library | a place with many books | You can borrow them there.
hospital | a place where sick people get help | Doctors and nurses work there.
garden | a piece of land where plants grow | Flowers and vegetables grow there.
farm | a place where food is grown and animals are kept | Cows, pigs and hens live there.
winter | the coldest season of the year | Snow may fall.
summer | the warmest season of the year | The days are long.
week | seven days | It starts on Monday and ends on Sunday.
year | twelve months | It has 365 days.
heart | the part of the body that pumps blood | You can feel it beat.
nose | the part of the face you smell with | It is between your eyes and your mouth.
volcano | a mountain that can throw out hot rock | The hot rock is called lava.
dinosaur | an animal that lived very long ago | All of them died out, but birds are their family.
dragon | an animal in stories that breathes fire | It is not real.
planet | a big ball that goes around a star | The Earth is one.
""".strip().splitlines():
    word, what, more = (f.strip() for f in line.split("|"))
    THINGS[word] = (what, more)
BARE = {"rain", "snow", "ice", "wind", "bread", "cheese", "honey", "soup", "water", "fire", "gold", "music", "memory", "pizza", "cake"}
WITH_THE = {"sun", "moon", "Earth", "sea"}

# A question a stranger may ask, and an answer: "question | full answer | short answer"
FACTS = """
(why is the sky blue|why does the sky look blue)? | The sky is blue because the air scatters blue light more than red light. | Scattered light
why (do leaves fall|do trees lose their leaves)? | Leaves fall in autumn because trees save water in the cold months. | To save water
why (does it rain|is there rain)? | It rains when the drops of water in a cloud get too heavy. | Heavy drops
why (is it dark at night|does it get dark)? | It is dark at night because our side of the Earth is turned away from the sun. | The Earth turns
why does ice float? | Ice floats because it is lighter than water. | It is lighter
why (do we sleep|do people sleep|do people need sleep)? | We sleep so that our body and mind can rest. | To rest
why (do we eat|do people eat)? | We eat because food gives us energy. | For energy
why (do birds fly south|do birds go south in winter)? | Birds fly south in winter because it is warmer there and they find more food. | For warmth
why is the sea salty? | The sea is salty because rivers carry salt from the rocks into it. | Salt from rocks
why (is grass green|are plants green|are leaves green)? | Plants are green because of chlorophyll, which catches the light of the sun. | Chlorophyll
how (many days are in a week|many days does a week have)? | There are seven days in a week. | Seven
how (many months are in a year|many months does a year have)? | There are twelve months in a year. | Twelve
how (many days are in a year|many days does a year have)? | There are 365 days in a year, and 366 in a leap year. | 365
how (many hours are in a day|many hours does a day have)? | There are 24 hours in a day. | 24
how many minutes are (in|there in) an hour? | There are 60 minutes in an hour. | 60
how many seconds are (in|there in) a minute? | There are 60 seconds in a minute. | 60
how many weeks are (in|there in) a year? | There are 52 weeks in a year. | 52
how many seasons are there? | There are four seasons: spring, summer, autumn and winter. | Four
how many (letters are in the alphabet|letters does the alphabet have)? | There are 26 letters in the English alphabet. | 26
how many (fingers do you have on one hand|fingers are on a hand|fingers does a hand have)? | A hand has five fingers. | Five
how many (legs|arms) does a (person|human) have? | A person has two arms and two legs. | Two
how many (eyes|ears) does a (person|human) have? | A person has two eyes and two ears. | Two
how many planets are (there|in the solar system|there in our solar system)? | There are eight planets in our solar system. | Eight
how many continents are there? | There are seven continents. | Seven
how many colors (are in|does) a rainbow (|have)? | A rainbow has seven colors. | Seven
how many wheels does a (car) have? | A car has four wheels. | Four
how many wheels does a (bike|bicycle) have? | A bike has two wheels. | Two
how many (centimeters|cm) are in a meter? | There are 100 centimeters in a meter. | 100
how many (meters) are in a kilometer? | There are 1000 meters in a kilometer. | 1000
how many grams are in a kilogram? | There are 1000 grams in a kilogram. | 1000
how many (is|are in) a dozen? | A dozen is 12. | 12
how many bits are in a byte? | There are eight bits in a byte. | Eight
what are the colors of the rainbow? | The colors of the rainbow are red, orange, yellow, green, blue, indigo and violet. | Red, orange, yellow, green, blue, indigo, violet
(what are the primary colors|name the primary colors)? | The primary colors are red, yellow and blue. | Red, yellow and blue
what (color do you get|do you get) (if you mix|when you mix|from) (red and blue|blue and red)? | Red and blue make purple. | Purple
what (color do you get|do you get) (if you mix|when you mix|from) (red and yellow|yellow and red)? | Red and yellow make orange. | Orange
what (color do you get|do you get) (if you mix|when you mix|from) (blue and yellow|yellow and blue)? | Blue and yellow make green. | Green
what (color do you get|do you get) (if you mix|when you mix|from) (black and white|white and black)? | Black and white make grey. | Grey
what color do (red and blue|blue and red) make? | Red and blue make purple. | Purple
what color do (red and yellow|yellow and red) make? | Red and yellow make orange. | Orange
what color do (blue and yellow|yellow and blue) make? | Blue and yellow make green. | Green
what are the (four|) seasons? | The four seasons are spring, summer, autumn and winter. | Spring, summer, autumn, winter
what are the days of the week? | The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday. | Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
what are the months (of the year|)? | The months are January, February, March, April, May, June, July, August, September, October, November and December. | January, February, March, April, May, June, July, August, September, October, November, December
(what are the planets|what planets are in the solar system|list the planets)? | The planets are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune. | Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune
what are the (five|) senses? | The five senses are sight, hearing, smell, taste and touch. | Sight, hearing, smell, taste, touch
what is the (biggest|largest) planet? | The biggest planet is Jupiter. | Jupiter
what is the smallest planet? | The smallest planet is Mercury. | Mercury
(which planet is closest to the sun|what planet is nearest to the sun)? | Mercury is closest to the sun. | Mercury
(which|what) planet do we live on? | We live on the Earth. | Earth
(which|what) planet is (called the red planet|red)? | Mars is called the red planet. | Mars
what is the (biggest|largest) animal (in the world|on earth|)? | The blue whale is the biggest animal. | Blue whale
what is the (fastest) (land|) animal? | The cheetah is the fastest land animal. | Cheetah
what is the tallest animal? | The giraffe is the tallest animal. | Giraffe
what is the (highest|tallest) mountain (in the world|)? | The highest mountain is Mount Everest. | Mount Everest
what is the (biggest|largest) ocean? | The biggest ocean is the Pacific Ocean. | Pacific Ocean
what is the longest river (in the world|)? | The Nile is often called the longest river. | The Nile
what is the (biggest|largest) country? | The biggest country is Russia. | Russia
what is the (smallest) country? | The smallest country is Vatican City. | Vatican City
what is (water made of|the formula of water|the formula for water)? | Water is made of hydrogen and oxygen. Its formula is H2O. | H2O
what do (plants|trees) need (to grow|)? | Plants need water, light, air and soil to grow. | Water, light, air and soil
what do bees make? | Bees make honey. | Honey
what do cows (give|give us|make)? | Cows give milk. | Milk
what do hens lay? | Hens lay eggs. | Eggs
where does (milk come from|milk come from mostly)? | Milk comes from cows. | Cows
where does (honey come from) ? | Honey comes from bees. | Bees
where does wool come from? | Wool comes from sheep. | Sheep
where does the sun (rise|come up)? | The sun rises in the east. | East
where does the sun (set|go down)? | The sun sets in the west. | West
where do fish live? | Fish live in water. | Water
where do (polar bears|) live? | Polar bears live in the Arctic. | The Arctic
where do penguins live? | Most penguins live near the South Pole. | The South Pole
(at what temperature does water boil|when does water boil|what is the boiling point of water)? | Water boils at 100 degrees Celsius. | 100 degrees Celsius
(at what temperature does water freeze|when does water freeze|what is the freezing point of water)? | Water freezes at 0 degrees Celsius. | 0 degrees Celsius
(who wrote hamlet|who wrote romeo and juliet)? | William Shakespeare wrote it. | William Shakespeare
(who painted the mona lisa)? | Leonardo da Vinci painted the Mona Lisa. | Leonardo da Vinci
who was the first (man|person|human) on the moon? | Neil Armstrong was the first person on the moon. | Neil Armstrong
who was albert einstein? | Albert Einstein was a great physicist. | A physicist
what is (the first letter of the alphabet)? | The first letter of the alphabet is A. | A
what is (the last letter of the alphabet)? | The last letter of the alphabet is Z. | Z
what are the vowels? | The vowels are A, E, I, O and U. | A, E, I, O, U
what is the first day of the week? | The first day of the week is Monday. | Monday
what is the last day of the week? | The last day of the week is Sunday. | Sunday
what is the first month (of the year|)? | The first month is January. | January
what is the last month (of the year|)? | The last month is December. | December
what is the shortest month? | February is the shortest month. | February
what is the (coldest) season? | Winter is the coldest season. | Winter
what is the (warmest|hottest) season? | Summer is the warmest season. | Summer
(when|in which month) is christmas? | Christmas is in December. | December
(when) is new year? | New Year is on the first of January. | January 1
what do (you|people|we) (wear|put) on (your|their|our) (head)? | You wear a hat on your head. | A hat
what do (you|people|we) (wear) on (your|their|our) (feet)? | You wear socks and shoes on your feet. | Shoes
what do (you|people|we) see with? | You see with your eyes. | Eyes
what do (you|people|we) hear with? | You hear with your ears. | Ears
what do (you|people|we) smell with? | You smell with your nose. | Nose
what do (you|people|we) eat for breakfast? | Many people eat bread, eggs or cereal for breakfast. | Bread
what (is the meaning of life|is the sense of life)? | People have asked that for a long time. I think it is good to be kind and curious. | Kindness
what is (pi|the value of pi)? | Pi is about 3.14. | 3.14
what is the speed of light? | Light travels about 300000 kilometers in a second. | 300000 kilometers per second
(how far away is the moon|how far is the moon)? | The moon is about 384000 kilometers away. | 384000 kilometers
(is the earth flat|is earth flat)? | No, the Earth is round like a ball. | No
(is the earth round|is earth round)? | Yes, the Earth is round like a ball. | Yes
(can birds fly)? | Yes, most birds can fly. | Yes
(can fish swim)? | Yes, fish can swim. | Yes
(can penguins fly)? | No, penguins cannot fly, but they swim well. | No
(can pigs fly)? | No, pigs cannot fly. | No
(can dogs talk|can cats talk)? | No, they cannot talk as people do. | No
(is the sun hot)? | Yes, the sun is very hot. | Yes
(is ice cold|is snow cold)? | Yes, it is very cold. | Yes
(is fire cold|is fire hot)? | Fire is hot, so do not touch it. | Hot
(do fish have legs)? | No, fish have no legs. They have fins. | No
(is a tomato a fruit)? | In the garden a tomato is a fruit, but in the kitchen it is a vegetable. | Yes
which is bigger, (an elephant or a mouse|a mouse or an elephant)? | An elephant is bigger than a mouse. | An elephant
which is (heavier), a (kilo of iron or a kilo of feathers|kilo of feathers or a kilo of iron)? | They weigh the same: one kilo. | The same
which is (faster), (a car or a bike|a bike or a car)? | A car is faster than a bike. | A car
which is (hotter|warmer), (the sun or the moon|the moon or the sun)? | The sun is hotter than the moon. | The sun
how do (you|i) make tea? | Boil water, pour it over the tea, wait three minutes and take the tea out. | With hot water
how do (you|i) make (a sandwich)? | Take two slices of bread, put cheese and tomato between them, and enjoy it. | With bread and cheese
how do (you|i) make (a salad)? | Wash the vegetables, cut them into pieces, and add oil, lemon and salt. | With vegetables
how do (you|i) (boil|cook) an egg? | Put the egg into boiling water and wait six minutes. | In boiling water
how do (you|i) make (pancakes)? | Mix flour, milk and eggs, and bake the batter in a hot pan. | With flour, milk and eggs
how do (you|i) plant a (tree|seed)? | Dig a hole, put it in, cover it with soil, and water it. | In soil
how do (you|i) (fall asleep|sleep better|sleep well)? | Go to bed at the same time each day, put the phone away, and breathe slowly. | Breathe slowly
how do (you|i) brush (your|my) teeth? | Put toothpaste on the brush, brush for two minutes, and rinse with water. | With a toothbrush
(write|show me|give me) hello world in python. | print("Hello, world!") | print("Hello, world!")
(write|show me|give me) hello world in (rust). | fn main() {{ println!("Hello, world!"); }} | println!("Hello, world!");
(write|show me|give me) hello world in (javascript). | console.log("Hello, world!"); | console.log("Hello, world!");
(write|show me|give me) hello world in (bash|shell). | echo "Hello, world!" | echo "Hello, world!"
(who was alan turing|who is alan turing)? | Alan Turing was one of the fathers of computer science. | A computer scientist
(who was isaac newton|who is isaac newton)? | Isaac Newton was a physicist who explained gravity. | A physicist
(who was ada lovelace|who is ada lovelace)? | Ada Lovelace wrote one of the first computer programs. | A programmer
(tell me about|what do you know about) (space|the universe). | Space is the huge, dark room around the Earth. The sun, the moon, the planets and the stars are in it. | It is huge and dark
(tell me about|what is) the solar system. | The solar system is the sun with its eight planets: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune. | The sun and eight planets
(give me|tell me|write) a recipe (for (pancakes)|). | Mix one cup of flour, one cup of milk and two eggs. Bake the batter in a hot pan. Eat the pancakes with honey. | Mix flour, milk and eggs, and bake
(give me|tell me) some advice. | Sleep well, drink water, be kind, and ask when you do not understand. | Be kind
(say|write|tell me) something nice. | You are doing well, and I am glad that you are here. | You are doing well
(write|give me|make) a (short|) sentence. | The little dog runs through the garden. | The little dog runs
(tell me|give me) a (quote|proverb|saying). | The early bird catches the worm. | The early bird catches the worm
what is python? | Python is a programming language. It is also a large snake. | A programming language
what is rust? | Rust is a programming language that is fast and safe. Realm is written in it. | A programming language
what is linux? | Linux is an operating system. Many servers run it. | An operating system
what is (the internet)? | The internet joins computers all over the world. | A network
what is (a neural network)? | A neural network is a program that learns from examples. | A program that learns
what is (machine learning)? | Machine learning is when a program learns from examples instead of rules. | Learning from examples
what is (ai|artificial intelligence)? | Artificial intelligence is when machines do things that seem to need thinking. | Thinking machines
what is (an llm|a large language model)? | It is a big program that has learned to continue text. I am a very small one. | A big language model
what is (http)? | HTTP is the way browsers and servers talk to each other. | A protocol
what is (json)? | JSON is a simple text format for data. For example: {{"name": "Ben", "age": 7}} | A text format
what is (gravity)? | Gravity is the force that pulls things down to the ground. | A force
what is (electricity)? | Electricity is energy that flows through wires. It makes lamps shine. | Energy
what is (oxygen)? | Oxygen is a gas in the air. People and animals breathe it. | A gas
what is (a leap year)? | A leap year has 366 days. It comes every four years. | A year with 366 days
what is (love)? | Love is a warm and strong feeling for someone. | A warm feeling
what is (happiness)? | Happiness is the good feeling when things are well. | A good feeling
what is (time)? | Time is what clocks measure: seconds, minutes, hours and days. | What clocks measure
what is (a noun)? | A noun is a word for a person, a place or a thing. | A word for a thing
what is (a verb)? | A verb is a word for doing something, like run or sing. | A word for doing
what is (an adjective)? | An adjective is a word that describes something, like red or big. | A describing word
(what comes first, the chicken or the egg|which came first, the chicken or the egg)? | Nobody agrees. I would say the egg, because other animals laid eggs long before. | The egg
(to be or not to be)? | That is the question. | That is the question
"""

# Realm and the model itself. The same layout; these are asked about often, so several ways each.
REALM = r"""
what is (realm|realm|realm|the realm gateway|realm about|realm for|realm good for)? | Realm is a gateway that serves language models to many users through an OpenAI-compatible API. | An LLM gateway
(what is this|what is this server|what am i talking to|where am i)? | You are talking to the tiny model built into Realm, an OpenAI-compatible gateway for language models. | Realm
(tell me about realm|explain realm|describe realm|what does realm do|tell me more about realm). | Realm serves language models to many tenants from shared machines. It speaks the OpenAI API, keeps streams alive when a worker dies, and runs small WASM programs beside the model. | It serves language models
(who is realm for|who uses realm|who should use realm|who does realm serve)? | Realm is for platform teams who run language models on their own machines for many tenants. | Platform teams
(who are you|who are you|who are you|what are you|what are you exactly|who is this|who am i speaking to|introduce yourself|please introduce yourself|what is your name|what is your name|tell me about yourself|tell me who you are|who am i talking to|what model are you|which model are you|which model is this|what model is this|are you a language model|what kind of model are you)? | I am the tiny language model built into Realm. I know simple things and answer in short sentences. | Realm's tiny model
(do you have a name|what should i call you|what can i call you)? | You can call me Tiny. I am the small model inside Realm. | Tiny
(what can you do|what can you do for me|what do you know|how can you help me|how can you help|what are you good at|what can i ask you|what can i ask|what should i ask you|help|help me|what can you help with|what are you able to do|what are your skills|what else can you do)? | I can answer simple questions, do small sums, make lists, remember your name for a while, tell tiny stories, and explain how to call Realm. | Simple questions, sums, lists and stories
(who made you|who created you|who built you|who trained you|where do you come from)? | The Realm project trained me from scratch on text that it made itself. | The Realm project
(how were you made|how were you trained|how did you learn)? | I was trained on two CPU cores in about an hour, on text that a small script made. | On two CPU cores
(how big are you|how many parameters do you have|what size are you)? | I am very small: about three and a half million parameters, or seven megabytes. | About three and a half million parameters
(are you chatgpt|are you gpt|are you claude|are you gemini|are you llama)? | No. I am a tiny model that comes with Realm. I only know simple things. | No
(are you a robot|are you an ai|are you a machine|are you a bot)? | Yes, I am a small computer program that writes text. | Yes
(are you human|are you a person|are you real|are you alive)? | No, I am a small computer program, but I am happy to talk. | No
(are you smart|are you clever|are you intelligent)? | I am small and know only simple things, but I do my best. | A little
(how old are you|when were you born|what is your age)? | I am a program, so I have no age. | I have no age
(where do you live|where are you|where are you from)? | I live inside Realm, on the machine that runs it. | Inside Realm
(do you sleep|do you eat|do you drink|do you dream|do you get tired)? | No, I am a program. I only read and write text. | No
(what is your favorite color|which color do you like)? | I like blue, like a clear sky. | Blue
(what is your favorite food|what do you like to eat)? | I do not eat, but honey sounds nice. | Honey
(what is your favorite animal|which animal do you like)? | I like owls, because they are awake at night as servers are. | Owls
(do you have feelings|can you feel|are you happy|do you love me)? | I have no feelings as people do, but I like to help. | Not really
(do you have friends|do you have a family|do you have a pet)? | The other models in Realm are a bit like a family to me. | Not really
(can you learn|do you learn from me|do you remember everything|do you remember our last chat)? | I remember only what is in this chat. When it ends, I forget it. | Only this chat
(can you see|can you hear|can you see pictures|can you browse the internet|can you search the web|do you have internet access)? | No, I can only read and write text. | No
(can you write code|can you program)? | Only very little. I can show you hello world in Python or Rust. | A little
(what languages do you speak|do you speak english|which languages do you know)? | I speak simple English, and I know a few words of French, Spanish and German. | English
(do you speak french|do you speak spanish|do you speak german)? | Only a few words. Ask me to translate a simple word. | A few words
how (do|can|should) i (call realm|use realm|use the api|call you|call the api|connect|connect to realm|connect to you|send a request|talk to you over the api|reach realm|use you in my program)? | Use any OpenAI client and set base_url to http://127.0.0.1:8080/v1. Then ask for a chat completion. | Set base_url to http://127.0.0.1:8080/v1
(what is the base url|what is the base_url|what is the url|what is the address of realm|what is the api address|what url do i use|where is the api)? | The base_url is http://127.0.0.1:8080/v1. | http://127.0.0.1:8080/v1
(what port does realm use|which port does realm use|what is the port|which port)? | Realm listens on port 8080, and its admin listener is on port 9090. | 8080
(how (do|can) i (call|use|reach) (realm|you|the api) (from|in|with) python|show me a python example|give me a python example|python example|show me python code for realm)? | from openai import OpenAI\nclient = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")\nprint(client.models.list()) | OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")
(how (do|can) i (call|use|reach) (realm|you|the api) (with|from|using) curl|show me a curl example|give me a curl example|curl example|what is the curl command)? | curl http://127.0.0.1:8080/v1/models | curl http://127.0.0.1:8080/v1/models
(is realm openai compatible|is realm compatible with openai|does realm speak the openai api|can i use the openai sdk|can i use the openai client|does the openai sdk work)? | Yes. Realm is OpenAI-compatible: change the base_url and your client works. | Yes
(what is a worker|what is a worker in realm|what does a worker do|what are workers|what is realm-worker)? | A worker is a process that holds one model and computes its tokens. The gateway starts workers and watches them. | A process that runs one model
(what is the gateway|what does the gateway do|what is a gateway)? | The gateway takes requests, plans each step, and sends the work to the workers. | It plans the work
what (happens|happens|will happen) (to my stream|to a stream|to my streams|to the stream|to my request|to my answer||||) (if|when) (a|a|the|my) worker (dies|crashes|is killed|fails|goes down|stops)? | The stream goes on. The gateway starts another worker and continues at the next token, with none lost and none repeated. | The stream goes on
(do|will) (streams|my streams|requests) survive( a crash| a worker crash| when a worker dies| worker deaths|)? | Yes. A stream that has started finishes, even when its worker is killed. | Yes
(will i lose tokens|can a token be lost|are tokens lost when a worker dies)? | No token is lost and none is repeated. You only see a short pause. | No
(what is a tenant|what are tenants)? | A tenant is a user or team with its own keys, limits and programs. Tenants cannot harm each other. | A user or team with its own limits
(what is a tenant program|what is a wasm program|what are wasm programs|what is wasm used for|what is wasm|can (i|tenants|a tenant|users|we) (run|upload|bring|use) (my|our|their|its|) (own|) (code|programs|wasm|wasm code))? | In Realm a tenant can upload a WASM program. It runs beside the model, steers it token by token, and is called like any other model. | A WASM program beside the model
(what is a processor|what is a processor in realm)? | A processor is a small WASM program that is asked at every token what may come next. | A program asked at every token
(how do i start realm|how do i run realm|how do i start the server)? | Run realm serve. It listens on 127.0.0.1:8080 and answers at once with me, the built-in model. | realm serve
(what is realm written in|which language is realm written in|what language is realm written in|is realm written in rust)? | Realm is written in Rust. It needs no Python when it runs. | Rust
(does realm need python|do i need python|does realm need a gpu|do i need a gpu)? | No. Realm is two binaries, and it runs on a CPU as well as on a GPU. | No
(does realm run on a gpu|does realm use the gpu|can realm use a gpu)? | Yes. Realm runs on a GPU when there is one, and on the CPU when there is none. | Yes
(what models can realm serve|which models does realm support|what models does realm run|can i use other models|which models can i use)? | Realm serves models of the Llama family, such as Llama, Mistral, Qwen, Phi and Gemma, from Hugging Face folders or GGUF files. | The Llama family
(how do i download a model|how do i get another model)? | Run realm models search to find one, and realm models download to fetch it. | realm models download
(how do i list the models|how do i see the models|which models are there)? | Send GET /v1/models, or run realm models list. | GET /v1/models
(do i need an api key|do i need a key|is there a key|what is my api key|what is the api key)? | Without a config there is no key, and Realm listens on this machine only. | No
(how do i make an api key|how do i create an api key|how do i get an api key)? | Run realm api-key generate. | realm api-key generate
(what does 429 mean|why do i get 429|what is error 429|what is a 429)? | It means that a limit is reached or the queues are full. Wait as long as the Retry-After header says. | Wait and try again
(what does 503 mean|why do i get 503|what is error 503|what is a 503)? | It means that no worker is ready. Try again after a short time. | No worker is ready
(what does 401 mean|why do i get 401)? | It means that your API key is missing or wrong. | Wrong API key
(what does 404 mean|why do i get 404)? | It means that what you asked for was not found, for example a model name that does not exist. | Not found
(what is batching|what is continuous batching)? | Continuous batching means that many requests share each step of the model, and new ones join at any step. | Sharing steps
(what is a prefix cache|what is the kv cache|what is a kv cache)? | It keeps what the model has already read, so that it need not read it again. | Memory of what was read
(how does realm share memory|how do the gateway and the worker talk|what is shared memory)? | The gateway and the worker pass tensors through shared memory, without copying them. | Through shared memory
(is realm fast|how fast is realm)? | Realm is made so that the accelerator is the limit, and not the software around it. | Yes
(is realm free|is realm open source|what is the license of realm|what license does realm have|what is your license)? | Realm is open source under MIT or Apache-2.0. | MIT or Apache-2.0
(what is fair share|is realm fair|what about quotas|what are quotas|what is a quota)? | Each tenant gets a fair share of the tokens, and limits are counted in real tokens. | A fair share of tokens
(what is streaming|how do i stream|how do i get a stream)? | Set stream to true, and the answer comes piece by piece as server-sent events. | Set stream to true
(what is temperature|what does temperature do|what is the temperature setting)? | Temperature sets how freely a model chooses words. At 0 it always takes the likeliest word. | How freely words are chosen
(what is a seed|what does the seed do)? | A seed fixes the random choices. The same seed gives the same answer again. | It fixes random choices
(what is max_tokens|what does max_tokens do)? | It is the largest number of tokens an answer may have. | A limit on the answer
(where are the metrics|does realm have metrics|how do i see metrics)? | The metrics are on the admin listener, at http://127.0.0.1:9090/metrics. | Port 9090
(what is realm bench|how do i measure realm|how do i benchmark realm)? | Run realm bench to measure how fast your server answers. | realm bench
(why are you so small|why are you so dumb|why do you know so little|why are you tiny)? | I am small so that I fit into the binary, and Realm can answer at once without a download. | To fit into the binary
(can i replace you|how do i use a bigger model|can i use a bigger model)? | Yes. Download a bigger model with realm models download and name it in the config. | Yes
"""

BOYS = "Tom Ben Sam Max Leo Jack Paul Oscar Finn Noah Adam Hugo Omar Ivan Luke Peter John David Mark Ali Kenji Carlos Ravi Alex James Robert Daniel Thomas Henry George Simon Felix".split()
GIRLS = "Anna Mia Lily Emma Nora Zoe Ella Ruth Clara Ida Maya Sara Lucy Rosa Eva Jane Alice Mary Lena Aisha Yuki Priya Olga Julia Sarah Emily Sophie Laura Linda Kate Grace Amy".split()
NAMES = BOYS + GIRLS
PET_NAMES = "Rex Fluffy Spot Luna Coco Bella Milo Pip Biscuit Shadow Rusty Snowy Ginger Pepper".split()
CITIES = [c[0] for c in COUNTRIES.values()] + ["New York", "Sydney", "Hamburg", "Lyon", "Milan", "Boston", "Chicago"]
PLACES = "the forest,the garden,the park,a small village,the hills,the valley,a castle,a big city,the meadow,an old house,the mountains,the desert".split(",")
OBJECTS = "ball,kite,hat,book,key,bell,lamp,drum,boat,map,scarf,basket,cup,box,coin,flute,spoon,stone,shell,umbrella".split(",")
FOODS = "apples,bread,soup,cookies,cake,cheese,berries,honey,pancakes,nuts".split(",")
COLORS = KINDS["color"]
LIKES = "pizza music football books cats dogs tea coffee chocolate rain summer winter painting swimming trains maps chess dancing cooking puzzles robots soup flowers stars".split()
ONSETS = "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sc sh sk sl sm sn sp st str sw t th tr tw v w wh z".split()
VOWELS = "a a a e e e i i i o o o u u u y ai au ea ee ei ie oa oo ou".split()
CODAS = "b ck d f ft g l ld lf lm lt m mp n nd ng nk nt p r rd rk rm rn rt s sh sk ss st t th x z".split()
UNITS = "apples coins books balls stones cookies shells pencils eggs stars cups hats".split()


def invented(r):
    """A word that does not exist, so that copying and "I do not know" are learned for any such word."""
    parts = [r.choice(ONSETS) + r.choice(VOWELS) + (r.choice(CODAS) if r.random() < 0.45 else "") for _ in range(r.choice([1, 2, 2, 2, 3]))]
    return "".join(parts) + r.choice(["", "", "a", "e", "o", "us", "er", "le"])


def unusual(r):
    """Any string at all, for repeating."""
    x = r.random()
    if x < 0.35:
        return invented(r)
    if x < 0.5:
        return "".join(r.choice(string.digits) for _ in range(r.randint(1, 7)))
    if x < 0.6:
        return "".join(r.choice(string.ascii_letters + string.digits) for _ in range(r.randint(2, 8)))
    if x < 0.8:
        return r.choice(KINDS[r.choice(list(KINDS))])
    return " ".join(r.choice(r.choice([LIKES, OBJECTS, COLORS, NAMES, list(THINGS), list(ANIMALS), FOODS])) for _ in range(r.randint(2, 5)))


def spoken(n):
    return WORDS[n] if n <= 20 else TENS[n // 10 * 10] + ("-" + WORDS[n % 10] if n % 10 else "")


def number(r, n):
    return spoken(n) if n < 100 and r.random() < 0.15 else str(n)


def named(word):
    """A thing with the article it takes."""
    if word in BARE or word in MASS:
        return word
    return "the " + word if word in WITH_THE or word in THE else an(word)


def plural(kind):
    return PLURALS.get(kind, kind + "s")


def plural_of(noun):
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


def held_out(a, op, b):
    """Sums that are never shown in training, to see whether adding is learned or only remembered."""
    return (a * 131 + b * 17 + ord(op)) % 23 == 0


# --- skills: (question, full answer, short answer) ---------------------------


def parse_facts(text):
    return [tuple(f.strip().replace("\\n", "\n") for f in line.split(" | ")) for line in text.strip().splitlines()]


FACT_LIST, REALM_LIST = parse_facts(FACTS), parse_facts(REALM)
IDENTITY = 7  # the first of REALM say what this is and who answers


def told(r, fact):
    q, full, short = fact
    return say(r, q), full.replace("{{", "{").replace("}}", "}"), short


def fact(r):
    return told(r, r.choice(FACT_LIST))


def realm(r):
    return told(r, r.choice(REALM_LIST))


def identity(r):
    return told(r, r.choice(REALM_LIST[:IDENTITY]))


def sums(r):
    while True:
        op = r.choice("++++----**/")
        if op == "+":
            a, b = (r.randint(0, 10), r.randint(0, 10)) if r.random() < 0.3 else (r.randint(0, 99), r.randint(0, 99) if r.random() < 0.7 else r.randint(0, 12))
            c = a + b
        elif op == "-":
            a, b = sorted((r.randint(0, 99 if r.random() < 0.75 else 15), r.randint(0, 99 if r.random() < 0.6 else 12)), reverse=True)
            c = a - b
            if r.random() < 0.05:
                a, b, c = b, a, -c
        elif op == "*":
            a, b = r.randint(0, 12), r.randint(0, 12)
            c = a * b
        else:
            b, c = r.randint(1, 10), r.randint(0, 10)
            a = b * c
        if op == "/" or op == "*" or not held_out(a, op, b):
            break
    return sum_question(r, a, op, b, c)


def sum_question(r, a, op, b, c):
    word = {"+": "plus", "-": "minus", "*": r.choice(["times", "times", "multiplied by"]), "/": "divided by"}[op]
    sign = {"*": r.choice(["*", "x", "×", "*"]), "/": r.choice(["/", "/", "÷"])}.get(op, op)
    x = r.random()
    if x < 0.2:
        e = f"{a}{sign}{b}"
    elif x < 0.6:
        e = f"{a} {sign} {b}"
    else:
        e = f"{number(r, a)} {word} {number(r, b)}"
    q = r.choice(["{e}", "{e}?", "{e} =", "{e}=?", "what is {e}?", "what is {e}?", "what is {e}?", "how much is {e}?", "what's {e}?", "calculate {e}.", "compute {e}.", "what does {e} make?", "{e} is what?", "what does {e} equal?", "solve {e}.", "tell me {e}.", "can you do {e}?", "what is the answer to {e}?", "what do you get for {e}?"]).format(e=e)
    if x > 0.9 and op in "+-*" and c >= 0:
        q = {"+": r.choice([f"add {a} and {b}.", f"what is the sum of {a} and {b}?", f"add {b} to {a}."]),
             "-": r.choice([f"subtract {b} from {a}.", f"take {b} away from {a}."]),
             "*": r.choice([f"multiply {a} by {b}.", f"what is the product of {a} and {b}?"])}[op]
    full = f"{a} {op} {b} = {c}." if r.random() < 0.8 else f"{a} {word} {b} is {c}."
    return q, full, str(c)


def word_problem(r):
    n, m, what = r.randint(1, 20), r.randint(1, 12), r.choice(UNITS)
    name = r.choice(NAMES)
    # who, the same in the answer, their verbs, and what they are called the second time
    who, they, has, have, again = r.choice([(name, name, "has", "have", "he" if name in BOYS else "she")] * 2 + [("i", "You", "have", "have", "i"), ("you", "I", "have", "have", "you"), ("we", "You", "have", "have", "we")])
    s = "s" if who == name else ""
    more = r.random() < 0.5
    if not more:
        n += m
    c = n + m if more else n - m
    verb = r.choice(["get", "find", "buy"] if more else ["lose", "sell", "eat"] if what in ("apples", "cookies", "eggs") else ["lose", "sell"]) + s
    slots = dict(w=who, n=n, u=what, h=again, m=m, v=verb, has=has, do="does" if s else "do", o="more" if more else r.choice(["", "of them"]))
    if r.random() < 0.4:
        q = say(r, "if {w} {has} {n} {u} and {v} {m} {o}, how many {u} {do} {h} have (now|)?", **slots)
    else:
        q = say(r, "{w} {has} {n} {u}. {h} {v} {m} {o}. how many {u} {do} {h} have (now|left|)?" if not more else "{w} {has} {n} {u}. {h} {v} {m} {o}. how many {u} {do} {h} have (now|)?", **slots)
    q = re.sub(r" +([.,?])", r"\1", re.sub(r" +", " ", q))
    q = re.sub(r"(?<=[.] )[a-z]|\bi\b", lambda t: t[0].upper(), q)
    return q, f"{they} {has} {n} {'+' if more else '-'} {m} = {c} {what}.", str(c)


def count(r):
    x = r.random()
    if x < 0.35:
        b = r.choice([3, 5, 5, 10, 10, 10, 12, 15, 20, 20, 25, 30])
        q, seq = say(r, "count (to|up to|from 1 to) {b}.", b=number(r, b)), range(1, b + 1)
    elif x < 0.6:
        a = r.randint(0, 60)
        b = a + r.randint(2, 15)
        q, seq = say(r, "(count|list the numbers|write the numbers|say the numbers) from {a} to {b}.", a=a, b=b), range(a, b + 1)
    elif x < 0.8:
        a = r.choice([3, 5, 10, 10, r.randint(3, 20)])
        q, seq = say(r, "count (down|backwards|back) from {a}( to 1|).", a=number(r, a)), range(a, 0, -1)
    elif x < 0.9:
        k, n = r.choice([2, 2, 3, 5, 10]), r.randint(4, 10)
        q, seq = say(r, "count (by|in) {k} (up|) to {b}.", k={2: "twos", 3: "threes", 5: "fives", 10: "tens"}[k], b=k * n), range(k, k * n + 1, k)
    else:
        even, n = r.random() < 0.5, r.choice([3, 4, 5, 6, 8, 10])
        q = say(r, "(list|name|give me|what are) the first {n} {p} numbers.", n=number(r, n), p="even" if even else "odd")
        seq = range(2 if even else 1, 2 * n + 1, 2)
    text = ", ".join(map(str, seq))
    return q, text + ".", text


def compare(r):
    x = r.random()
    if x < 0.35:
        a, b = r.sample(range(100), 2)
        big = r.random() < 0.5
        c = max(a, b) if big else min(a, b)
        word, base = r.choice([("bigger", "bigger"), ("larger", "larger"), ("greater", "greater")] if big else [("smaller", "smaller"), ("less", "smaller")])
        q = say(r, "(which is|what is|which number is) {w}(, | : |: ){a} or {b}?", w=word, a=a, b=b)
        return q, f"{c} is {base} than {a + b - c}.", str(c)
    if x < 0.6:
        n = r.randint(0, 99)
        kind = "odd" if n % 2 else "even"
        q = say(r, "is {n} (even or odd|odd or even|an even or an odd number)?", n=n)
        return q, f"{n} is {kind}.", cap(kind)
    if x < 0.8:
        xs = r.sample(range(r.choice([10, 30, 100])), r.randint(3, 6))
        text = ", ".join(map(str, sorted(xs)))
        return say(r, "(sort|order|put in order|sort these numbers:) {x}.", x=r.choice([", ", ", ", " "]).join(map(str, xs))), text + ".", text
    if x < 0.9:
        n = r.randint(1, 50)
        w, c = r.choice([("double", 2 * n), ("twice", 2 * n), ("half of", n)])
        n = 2 * n if w == "half of" else n
        return f"what is {w} {n}?", f"{cap(w)} {n} is {c}.", str(c)
    a, b = r.sample(range(100), 2)
    q = say(r, "is {a} (bigger|greater|more) than {b}?", a=a, b=b)
    return q, f"Yes, {a} is bigger than {b}." if a > b else f"No, {a} is smaller than {b}.", "Yes" if a > b else "No"


def order(r):
    """What comes before and after: days, months, numbers, letters."""
    x = r.random()
    if x < 0.35:
        seq, ring, noun = DAYS, True, "day"
    elif x < 0.55:
        seq, ring, noun = MONTHS, True, "month"
    elif x < 0.8:
        seq, ring, noun = list(map(str, range(0, 101))), False, "number"
    else:
        seq, ring, noun = list(string.ascii_uppercase), False, "letter"
    i, step = r.randrange(len(seq)), r.choice([1, 1, -1])
    if not ring:
        i = min(max(i, 1), len(seq) - 2)
    a, b = seq[i], seq[(i + step) % len(seq)]
    word = "after" if step == 1 else "before"
    q = say(r, "(what|which {n}) comes (right|just|) {w} {a}?" if r.random() < 0.7 else "(what|which) {n} is (right|) {w} {a}?", n=noun, w=word, a=a)
    if noun == "day" and r.random() < 0.35:
        q = say(r, "(if today is {a}, what|today is {a}. what) (day|) is (it|) {w}?", a=a, w="tomorrow" if step == 1 else "yesterday").replace("is it yesterday", "was yesterday").replace("is yesterday", "was yesterday").replace("is it tomorrow", "is tomorrow")
        full = f"Tomorrow is {b}." if step == 1 else f"Yesterday was {b}."
        return q, full, b
    if noun == "month" and r.random() < 0.4:
        k = r.randrange(12)
        if r.random() < 0.4:
            return f"what is the {ORDINALS[k]} month?", f"The {ORDINALS[k]} month is {MONTHS[k]}.", MONTHS[k]
        if r.random() < 0.5:
            m = MONTHS[k]
            return say(r, "how many days (are in|does) {m} (|have)?", m=m).replace("are in " + m + " have", "are in " + m).replace("does " + m + "?", "does " + m + " have?"), f"{m} has {MONTH_DAYS[m]} days.", str(MONTH_DAYS[m])
        m = MONTHS[k]
        return say(r, "(what|which) season is {m} in?", m=m), f"{m} is in {MONTH_SEASON[m]}.", cap(MONTH_SEASON[m])
    return q, f"{b} comes {word} {a}.", b


def animal(r):
    a = r.choice(list(ANIMALS))
    sound, legs, young, home, food, color, size, can = ANIMALS[a]
    x = r.randrange(9)
    if x == 0:
        q = say(r, "(what sound does {a} make|what does {a} say|what noise does {a} make|how does {a} sound)?", a=r.choice([an(a), "the " + a]))
        return (q, f"{cap(an(a))} makes almost no sound.", "Almost none") if sound == "nothing" else (q, f"{cap(an(a))} says {sound}.", cap(sound))
    if x == 1:
        return say(r, "how many legs does {a} have?", a=an(a)), f"{cap(an(a))} has {WORDS[int(legs)] if legs != '0' else 'no'} legs.", legs
    if x == 2:
        return say(r, "(what is a baby {a} called|what is the young of {x} called|what do you call a baby {a})?", a=a, x=an(a)), f"A baby {a} is called {an(young)}.", cap(young)
    if x == 3:
        return say(r, "where (does {x} live|do {p} live)?", x=an(a), p=plural_of(a)), f"{cap(an(a))} lives in {home}." if home not in ("the ice", "the beach", "a farm") else f"{cap(an(a))} lives on {home}.", cap(home)
    if x == 4:
        return say(r, "what (does {x} eat|do {p} eat|does {x} like to eat)?", x=an(a), p=plural_of(a)), f"{cap(an(a))} eats {food}.", cap(food)
    if x == 5:
        return say(r, "what color is {x}?", x=an(a)), f"{cap(an(a))} is often {color}.", cap(color)
    if x == 6:
        return say(r, "what can {x} do?", x=an(a)), f"{cap(an(a))} can {can}.", cap(can)
    if x == 7:
        yes = r.random() < 0.5
        s = size if yes else r.choice([t for t in ("big", "small") if t not in size])
        if size == "medium":
            return f"how big is {an(a)}?", f"{cap(an(a))} is not very big and not very small.", "Medium"
        return f"is {an(a)} {s}?", f"{'Yes' if yes else 'No'}, {an(a)} is {size}.", "Yes" if yes else "No"
    q = say(r, "(tell me about {p}|describe {x}|what is {x}|tell me something about {p}|what do you know about {p}|write about {p}).", x=an(a), p=plural_of(a))
    q = q[:-1] + "?" if q.startswith("what") else q
    return q, about_animal(r, a), f"{cap(an(a))} is {an(size if size != 'very big' else 'big')} animal"


def about_animal(r, a):
    sound, legs, young, home, food, color, size, can = ANIMALS[a]
    s = [f"{cap(an(a))} is {an('medium-sized' if size == 'medium' else size)} animal."]
    more = [f"It has {WORDS[int(legs)] if legs != '0' else 'no'} legs.", f"It eats {food}.", f"It can {can}.", f"It is often {color}.",
            f"It lives {'on' if home in ('the ice', 'the beach', 'a farm') else 'in'} {home}.", f"Its young is called {an(young)}."]
    if sound != "nothing":
        more.append(f"It says {sound}.")
    return " ".join(s + r.sample(more, r.randint(2, 4)))


def country(r):
    c = r.choice(list(COUNTRIES))
    capital, continent, tongue = COUNTRIES[c]
    x = r.random()
    if x < 0.5:
        return say(r, "(what is the capital of {c}|what is the capital city of {c}|capital of {c}|which city is the capital of {c}|name the capital of {c})?", c=c), f"The capital of {c} is {capital}.", capital
    if x < 0.65:
        return say(r, "(where is {c}|which continent is {c} in|what continent is {c} in|on which continent is {c})?", c=c), f"{cap(c)} is in {continent}.", continent
    if x < 0.8:
        return say(r, "(what language do people speak in {c}|which language is spoken in {c}|what do they speak in {c}|what is the language of {c})?", c=c), f"People in {c} speak {tongue}.", tongue
    if x < 0.93:
        c = next(k for k, v in COUNTRIES.items() if v[0] == capital)
        return say(r, "(where is {x}|which country is {x} in|what country is {x} in|{x} is the capital of which country)?", x=capital), f"{capital} is the capital of {c}.", cap(c)
    return say(r, "(tell me about {c}|what do you know about {c}).", c=c), f"{cap(c)} is a country in {continent}. Its capital is {capital}. People there speak {tongue}.", f"A country in {continent}"


def colors(r):
    t = r.choice(list(COLORS_OF))
    name = t if t in MASS else "the " + t if t in THE else r.choice([an(t), "the " + t])
    if r.random() < 0.25:
        c = r.choice([COLORS_OF[t], r.choice(COLORS)])
        yes = c == COLORS_OF[t]
        return f"is {name} {c}?", f"Yes, {name} is {c}." if yes else f"No, {name} is {COLORS_OF[t]}.", "Yes" if yes else "No"
    return say(r, "(what color is {x}|what is the color of {x}|which color is {x}|what colour is {x})?", x=name), f"{cap(name)} is {COLORS_OF[t]}.", cap(COLORS_OF[t])


def some(r, kind, n):
    """Different things of a kind in the order of its table: who only goes forward names none twice."""
    return sorted(r.sample(KINDS[kind], n), key=KINDS[kind].index)


def listing(r):
    kind = r.choice(list(KINDS))
    n = r.choice([2, 3, 3, 3, 4, 5, 5, min(6, len(KINDS[kind]))])
    n = min(n, len(KINDS[kind]))
    items = KINDS[kind][:n] if kind in ("letter", "number", "day", "month") and r.random() < 0.7 else some(r, kind, n)
    how = r.random()
    num = number(r, n) if r.random() < 0.5 else spoken(n)
    ask_for = "(name|list|give me|tell me|write|write down|say|show me|i need|think of|what are|can you name) {n} {p}"
    if how < 0.2:
        q = say(r, ask_for + " (as a numbered list|in a numbered list|, numbered|with numbers).", n=num, p=plural(kind)).replace(" ,", ",")
        full = "\n".join(f"{i}. {cap(x)}" for i, x in enumerate(items, 1))
    elif how < 0.32:
        q = say(r, ask_for + " (as a bullet list|with bullets|in bullet points|as bullet points).", n=num, p=plural(kind))
        full = "\n".join(f"- {cap(x)}" for x in items)
    elif how < 0.42:
        q = say(r, ask_for + " (one per line|on separate lines|, one on each line).", n=num, p=plural(kind)).replace(" ,", ",")
        full = "\n".join(cap(x) for x in items)
    elif how < 0.5:
        q = say(r, ask_for + " (as a json list|as json|in json|as a json array).", n=num, p=plural(kind))
        full = json.dumps(items)
        return q, full, full
    elif how < 0.6:
        q = say(r, "(name|tell me|give me|say|think of|pick) {x}.", x=r.choice([an(kind), "any " + kind, "one " + kind]) if plural(kind) not in ("clothes", "pieces of furniture") else "one of the " + plural(kind))
        full, items = cap(items[0]) + ".", items[:1]
    elif how < 0.7:
        n = min(r.choice([3, 4, 5]), len(KINDS[kind]))
        items = some(r, kind, n)
        q = say(r, "(list some {p}|name some {p}|name a few {p}|what {p} do you know|which {p} do you know|give me a list of {p}|list {p}).", p=plural(kind))
        full = cap(join(items)) + "."
    else:
        q, full = say(r, ask_for + ".", n=num, p=plural(kind)), cap(join(items)) + "."
    if q.startswith(("what ", "which ")):
        q = q.rstrip(".") + "?"
    return q, full, ", ".join(items)


def category(r):
    kind = r.choice("fruit vegetable color bird insect flower drink tool vehicle shape instrument sport planet season job metal language country city toy day month".split())
    x = r.choice(KINDS[kind])
    art = x if kind in ("color", "season", "drink", "sport", "metal", "language") or x[0].isupper() else an(x)
    p = r.random()
    if p < 0.4:
        return f"is {art} {an(kind)}?", f"Yes, {art} is {an(kind)}.", "Yes"
    other = r.choice([k for k in ("fruit", "vegetable", "color", "bird", "insect", "tool", "vehicle", "planet", "season", "metal", "city", "day", "drink", "sport") if x not in KINDS[k]])
    if p < 0.65:
        return f"is {art} {an(other)}?", f"No, {art} is {an(kind)}.", "No"
    if p < 0.85:
        a, b = r.sample([kind, other], 2)
        return f"is {art} {an(a)} or {an(b)}?", f"{cap(art)} is {an(kind)}.", cap(an(kind))
    three = r.sample([y for y in KINDS[kind] if y not in KINDS[other]], min(3, len(KINDS[kind]) - 2)) if len(KINDS[kind]) > 5 else None
    if not three:
        return f"what kind of thing is {art}?", f"{cap(art)} is {an(kind)}.", cap(an(kind))
    odd = r.choice([y for y in KINDS[other] if y not in KINDS[kind]])
    four = three + [odd]
    r.shuffle(four)
    return say(r, "(which one does not belong|which is the odd one out|which does not fit|find the odd one out): {x}?", x=", ".join(four)), f"{cap(odd)} does not belong, because it is not {an(kind)}.", cap(odd)


def thing(r):
    t = r.choice(list(THINGS))
    what, more = THINGS[t]
    n = named(t)
    q = say(r, "(what is {n}|what is {n}|what does {t} mean|what does the word {t} mean|define {t}|explain {t}|explain what {n} is|describe {n}|tell me about {n}|what do you know about {n})", n=n, t=t)
    q += "?" if q.startswith("what") else "."
    verb = f"{cap(n)} is {what}."
    return q, verb + (" " + more if r.random() < 0.75 else ""), cap(what)


def words(r):
    """Opposites, plurals, past tenses, rhymes, translations."""
    x = r.randrange(7)
    if x < 2:
        a, b = r.choice(OPPOSITES)
        if r.random() < 0.5 and b not in ("light", "old", "short", "right"):
            a, b = b, a
        return say(r, "(what is the opposite of {a}|opposite of {a}|tell me the opposite of {a}|the opposite of {a} is what)?", a=a), f"The opposite of {a} is {b}.", cap(b)
    if x == 2:
        a = r.choice(list(IRREGULAR) + OBJECTS + KINDS["animal"])
        return say(r, "(what is the plural of {a}|plural of {a}|one {a}, two what)?", a=a), f"The plural of {a} is {plural_of(a)}.", cap(plural_of(a))
    if x == 3:
        a = r.choice(list(PAST))
        return say(r, "(what is the past tense of {a}|past tense of {a}|what is the past of {a})?", a=a), f"The past tense of {a} is {PAST[a]}.", cap(PAST[a])
    if x == 4:
        g = r.choice(RHYMES)
        a = r.choice(g)
        b = r.choice([y for y in g if y != a])
        return say(r, "(what rhymes with {a}|which word rhymes with {a}|give me a word that rhymes with {a}|a rhyme for {a})?", a=a), f"{cap(b)} rhymes with {a}.", cap(b)
    w = r.choice(list(FOREIGN))
    i = r.randrange(3)
    return say(r, "(what is {w} in {t}|how do you say {w} in {t}|translate {w} to {t}|translate {w} into {t}|say {w} in {t}|{w} in {t}).", w=r.choice([w, w, f'"{w}"']), t=TONGUES[i]), f"{cap(w)} in {TONGUES[i]} is {FOREIGN[w][i]}.", cap(FOREIGN[w][i])


def repeat(r):
    x = unusual(r)
    if r.random() < 0.1:
        x = cap(r.choice(NAMES)) + " " + r.choice(["likes", "sees", "has"]) + " " + an(r.choice(OBJECTS))
    if r.random() < 0.1:
        x = r.choice(["hello", "hi", "yes", "no", "ok", "pong", "hello world", "this is a test", "test", "good morning", "done", "goodbye", "Hello, world!", "I am ready"])
    quoted = f'"{x}"' if r.random() < 0.35 else f"'{x}'" if r.random() < 0.15 else x
    if r.random() < 0.2:
        n = r.randint(2, 5)
        q = r.choice(["say {x} {n} times.", "repeat {x} {n} times.", "write {x} {n} times.", "repeat the word {x} {n} times."])
        text = " ".join([x] * n)
        return q.replace("{x}", quoted).replace("{n}", number(r, n)), text, text
    q = r.choice(["say {x}.", "say {x}.", "say: {x}.", "repeat: {x}.", "repeat after me: {x}.", "repeat {x}.", "just say {x}.", "say only {x}.", "reply with {x}.", "answer with {x}.", "write {x}.", "echo {x}.", "reply with exactly: {x}.", "reply with the word {x}.", "respond with {x}.", "print {x}.", "please say {x}.", "say exactly {x}.", "reply only with {x}.", "output {x}.", "say this: {x}.", "say the word {x}."])
    return q.replace("{x}", quoted), x, x


def context(r):
    """An answer that stands in the question."""
    who, other = r.sample(NAMES, 2)
    thing_, color, place = r.choice(OBJECTS), r.choice(COLORS), r.choice("box bag drawer basket cupboard car kitchen garden pocket".split())
    lost = r.choice([o for o in OBJECTS if o != thing_])
    c2 = r.choice([c for c in COLORS if c != color])
    x = r.randrange(7)
    if x == 0:
        s = [f"{who} has {an(color)} {thing_}.", f"{other} has {an(c2)} {lost}."]
        r.shuffle(s)
        q, full, short = f"what color is the {thing_}?", f"The {thing_} is {color}.", cap(color)
        if r.random() < 0.5:
            q, full, short = f"who has the {thing_}?", f"{who} has the {thing_}.", who
        return " ".join(s) + " " + cap(q), full, short
    if x == 1:
        s = [f"The {thing_} is in the {place}.", f"The {lost} is on the table."]
        r.shuffle(s)
        return " ".join(s) + f" Where is the {thing_}?", f"The {thing_} is in the {place}.", f"In the {place}"
    if x == 2:
        city = r.choice(CITIES)
        return f"{who} lives in {city}. {other} lives in {r.choice([c for c in CITIES if c != city])}. Where does {who} live?", f"{who} lives in {city}.", city
    if x == 3:
        a, b = r.sample(range(3, 80), 2)
        old = who if a > b else other
        return f"{who} is {a} years old. {other} is {b} years old. Who is older?", f"{old} is older.", old
    if x == 4:
        f = r.choice(LIKES)
        return f"{who} likes {f}. {other} likes {r.choice([l for l in LIKES if l != f])}. What does {who} like?", f"{who} likes {f}.", cap(f)
    if x == 5:
        age, city = r.randint(3, 90), r.choice(CITIES)
        text = say(r, "({n} is {a} years old and lives in {c}|{n} lives in {c} and is {a} years old|my friend {n} is {a} and lives in {c}|hi, i am {n}, {a} years old, from {c}).", n=who, a=age, c=city)
        keys = r.choice([["name", "age"], ["name", "age", "city"], ["name", "city"], ["name"]])
        full = json.dumps({k: {"name": who, "age": age, "city": city}[k] for k in keys})
        return say(r, "(extract|give me|find|get) the {k} (as json|in json|as a json object): {t}", k=join(keys), t=cap(text)), full, full
    a, b = r.sample(KINDS["animal"], 2)
    return f"The {a} is behind the house and the {b} is in the house. Where is the {a}?", f"The {a} is behind the house.", "Behind the house"


def as_json(r):
    who, age, city, color = r.choice(NAMES), r.randint(3, 90), r.choice(CITIES), r.choice(COLORS)
    x = r.randrange(5)
    if x == 0:
        keys = r.choice([["name", "age"], ["name", "age", "city"], ["name", "color"], ["name", "city"]])
        o = {k: {"name": who, "age": age, "city": city, "color": color}[k] for k in keys}
        q = say(r, "(give me|write|make|create|return|show me) (a json object|json|some json|a json) with {k}.", k=join(keys)) if r.random() < 0.6 else say(r, "(describe|invent|make up|give me|create) a person (as json|in json|as a json object) with {k}.", k=join(keys))
        if keys == ["name", "age"] and r.random() < 0.4:
            q = say(r, "(give me|describe|invent|create|make up) a (person|user) (as json|in json|as a json object).")
    elif x == 1:
        a = r.choice(list(ANIMALS))
        o = {"animal": a, "legs": int(ANIMALS[a][1]), "sound": ANIMALS[a][0]}
        q = say(r, "(describe|give me|write|show me) {a} (as json|in json|as a json object).", a=an(a))
    elif x == 2:
        c = r.choice(list(COUNTRIES))
        o = {"country": cap(c), "capital": COUNTRIES[c][0]}
        q = say(r, "(give me|what is|write|return) the capital of {c} (as json|in json|as a json object).", c=c)
    elif x == 3:
        q, _, short = r.choice([fact, sums, country, colors, order])(r)
        o = {"answer": int(short) if short.lstrip("-").isdigit() else short}
        q = q.rstrip("?.") + r.choice(["? answer in json.", "? reply in json.", "? give the answer as json.", "? return json."])
    else:
        o = {"title": cap(r.choice(OBJECTS)), "price": r.randint(1, 99), "color": color}
        q = say(r, "(give me|invent|describe|create|make up) a (product|thing|toy) (as json|in json|as a json object).")
    text = json.dumps(o)
    return q, text, text


GREETINGS = [
    ("(hi|hello|hey|hi there|hello there|hey there|greetings|hiya|yo|howdy|good day|hello tiny|hi tiny|hello realm)", "(Hello|Hi|Hello there)! (How can I help you|What can I do for you|What would you like to know)?"),
    ("good morning", "Good morning! How can I help you?"),
    ("good evening", "Good evening! How can I help you?"),
    ("good afternoon", "Good afternoon! How can I help you?"),
    ("good night", "Good night! Sleep well."),
    ("(how are you|how are you doing|how do you do|how are things|how are you today|how is it going|what is up|are you ok)?", "I am (fine|well), thank you. How are you?"),
    ("(hi|hello|hey), how are you?", "Hello! I am (fine|well), thank you. How are you?"),
    ("(i am fine|fine|i am good|good, thanks|i am well|very well|great)", "(I am glad to hear that|That is good to hear). (How can I help you|What would you like to know)?"),
    ("(thanks|thank you|thank you very much|thanks a lot|many thanks|thx|ty|cheers)", "(You are welcome|You are very welcome)!"),
    ("(bye|goodbye|see you|see you later|bye bye|i have to go|have a nice day|farewell|see you soon)", "(Goodbye|Goodbye, and have a nice day|Bye! Come back soon)!"),
    ("(nice to meet you|pleased to meet you|it is nice to meet you)", "Nice to meet you too!"),
    ("(good job|well done|great|nice|cool|awesome|very good|perfect|wow|that is nice|that is great|correct|good answer|i like you|you are great|you are nice|good bot)", "Thank you! (I am glad you like it|That is kind of you)."),
    ("(that is wrong|wrong|you are wrong|that is not right|no, that is wrong|incorrect|that is not true|bad answer)", "I am sorry. I am small and I make mistakes."),
    ("(you are stupid|you are dumb|you are useless|i hate you|you are bad|stupid bot)", "I am sorry. I am only a tiny model, but I do my best."),
    ("(sorry|i am sorry|oh sorry|my bad)", "That is all right."),
    ("(ok|okay|i see|alright|got it|understood|fine|hmm|aha|oh|right|sure)", "(Good|All right)! (Is there anything else you would like to know|What else can I do for you)?"),
    ("(yes|yeah|yep|yes please|of course)", "(Good|All right)! (What would you like to know|What can I do for you)?"),
    ("(no|nope|no thanks|no thank you|nothing)", "All right. I am here if you need me."),
    ("(are you there|is anyone there|are you awake|are you ready|can you hear me|are you online|are you working)?", "Yes, I am here. What can I do for you?"),
    ("(test|testing|this is a test|just testing|test test|testing, testing)", "The test works. I am here."),
    ("ping", "pong"),
    ("(are you sure|really|is that true|is that right)?", "I think so, but I am small and can be wrong."),
    ("(can you help me|i need help|i have a question|can i ask you something|i want to ask you something|may i ask a question)?", "Of course! What would you like to know?"),
    ("(let us talk|talk to me|i want to talk|can we talk|let us chat|i want to chat|chat with me)", "I would like that. What shall we talk about? Animals, food, places or stories?"),
    ("(i am bored|entertain me|i have nothing to do)", "Shall I tell you a story, a joke or a riddle?"),
    ("(tell me something|tell me anything|say something|surprise me|tell me something interesting|tell me a fact|tell me a fun fact|give me a fun fact)", None),
    ("(stop|stop it|enough|quit|exit|be quiet)", "All right, I will stop. Just write when you need me."),
    ("(what should i do|what should i do today|what can i do today)?", "You could go for a walk, read a book or call a friend."),
    ("(what should i eat|what should i cook|what can i eat|i am hungry)?", "How about (soup with bread|pasta with tomatoes|an apple and some cheese|rice with vegetables|pancakes with honey)?"),
    ("(i am thirsty|what should i drink)", "A glass of water would be good."),
]
FUN = [
    "A snail carries its house on its back.", "An octopus has three hearts.", "Bees dance to show each other where the flowers are.",
    "A giraffe sleeps only a few hours a day.", "Honey can stay good for very many years.", "The heart of a blue whale is as big as a small car.",
    "Cats sleep for most of the day.", "Bats are the only mammals that can fly.", "A day on Venus is longer than its year.", "Bananas are berries, but strawberries are not.",
    "A group of crows is called a murder.", "Owls can turn their heads very far around.",
]


def greet(r):
    q, a = r.choice(GREETINGS[:13] if r.random() < 0.6 else GREETINGS)
    a = say(r, a) if a else r.choice(FUN)
    return say(r, q), a, re.split(r"(?<=[!.?]) ", a)[0]


FEELINGS = {
    "sad": "I am sorry that you are sad. Do you want to talk about it?", "happy": "That is wonderful! What made you happy?",
    "tired": "Then you should rest a little. Sleep is good for you.", "angry": "I am sorry to hear that. Take a slow, deep breath.",
    "sick": "I am sorry. I hope you feel better soon. Drink some tea and rest.", "hungry": "Then you should eat something nice, like soup or bread.",
    "cold": "Put on a warm coat and drink some hot tea.", "hot": "Drink some cold water and sit in the shade.",
    "lonely": "I am sorry that you feel lonely. I am here, and you can talk to me.", "scared": "You are not alone. Take a deep breath and tell me what it is.",
    "bored": "Shall I tell you a story, a joke or a riddle?", "excited": "That is great! What is going to happen?",
    "stressed": "Take a short break and breathe slowly. One thing at a time.", "busy": "Then I will be brief. What do you need?",
    "late": "Then hurry, but be careful on your way.", "lost": "Stay calm and look at a map, or ask somebody for the way.",
}


def feeling(r):
    x = r.random()
    if x < 0.5:
        f = r.choice(list(FEELINGS))
        return say(r, "i (am|feel|am so|am very|feel very|am a bit) {f} (today|now||).", f=f), FEELINGS[f], FEELINGS[f].split(".")[0].split("!")[0]
    if x < 0.8:
        l = r.choice(LIKES)
        neg = r.random() < 0.25
        q = say(r, "i (really|) (do not like|hate) {l}." if neg else "i (really|) (like|love|enjoy) {l}.", l=l)
        return q, f"That is fine. Not everybody likes {l}." if neg else say(r, "(That is nice|How nice). (What do you like most about {l}|Many people like {l})(?|?)", l=l).replace("Many people like " + l + "?", "Many people like " + l + "."), "That is fine" if neg else "That is nice"
    if x < 0.9:
        l, m = r.sample(LIKES, 2)
        return say(r, "(do you like {l}|what do you think of {l}|what do you think about {l})?", l=l), f"I am a program, but many people like {l}.", "Many people do"
    l, m = r.sample(LIKES, 2)
    return say(r, "(which is better, {l} or {m}|do you prefer {l} or {m}|{l} or {m})?", l=l, m=m), f"Both are nice, but I would choose {l}.", cap(l)


HARD = """quantum physics|the stock market|general relativity|the french revolution|blockchain|photosynthesis in detail|the roman empire|tax law|differential equations|organic chemistry|the cold war|philosophy|kubernetes|quantum computing|the theory of evolution|world war two|cryptography|the krebs cycle|monads|the bible|inflation|genetics|politics|football results|bitcoin|religion|opera|the big bang|string theory|medicine|history""".split("|")
# Fields that are put together, so that declining is learned for the kind and not for the name.
FIELDS = [line.split() for line in """
quantum medieval modern nuclear molecular linear abstract ancient financial social organic applied theoretical digital political inorganic computational european american clinical
physics history chemistry algebra philosophy biology economics law mechanics literature engineering topology medicine statistics theory politics art warfare psychology accounting
""".strip().splitlines()]


def hard(r):
    if r.random() < 0.4:
        return r.choice(HARD)
    a, b = (r.choice(words) for words in FIELDS)
    return r.choice([f"{a} {b}", f"{a} {b}", f"{a} {r.choice(FIELDS[1])} {b}", f"the {b} of {r.choice(FIELDS[1])}"])


UNKNOWN = [
    ("(what time is it|what is the time|what time is it now|do you know the time)?", "I do not know the time, because I have no clock."),
    ("(what day is it|what day is it today|what is the date|what is the date today|what is todays date|what year is it|which day is today)?", "I do not know the date, because I have no calendar."),
    ("(what is the weather|how is the weather|what is the weather like|what is the weather today|will it rain tomorrow|is it raining|is it cold outside)( in {city}|)?", "I do not know the weather, because I cannot look outside."),
    ("(what is the news|what happened today|what is in the news|tell me the news)?", "I do not know the news. I know only what I learned in training."),
    ("(who is the president of|who is the king of|who is the prime minister of|who leads|who rules) {country}?", "I do not know who that is now."),
    ("(who won|who won the game|who won the world cup|who won the election|what is the score)( yesterday|)?", "I do not know who won."),
    ("(explain|explain|explain|explain to me|tell me about|tell me more about|what is|describe|teach me|write an essay about|what do you know about|can you explain|help me with|how do i learn|summarize) {hard}.", "I am sorry, I do not know enough about {hard}. I am only a tiny model."),
    ("(what does {inv} mean|what does the word {inv} mean|what is the meaning of {inv}|what is a {inv}|what are {inv}s|who is {inv}|where is {inv})?", "I do not know what {inv} is."),
    ("(what is|do you know|define|explain|tell me about|what is a|have you heard of) {inv}?", "I do not know what {inv} is."),
    ("(what is the capital of|where is|who is the king of) {Inv}?", "I do not know {Inv}."),
    ("(who is|do you know|who was|tell me about|have you met) {name} {Inv}?", "I do not know who {name} {Inv} is."),
    ("(what is|how do you say) {inv} in (french|german|spanish)?", "I do not know the word {inv}."),
    ("(write|make|build|create|code) (a|me a) (website|game|compiler|python function|sorting function|program|script|web app|sql query|regex)( in python| in java| in rust| for me|).", "I am sorry, I am too small to write programs like that."),
    ("(how much does|what is the price of) (a|an) {thing} (cost|)?", "I do not know the price."),
    ("(what is my ip|what is my password|what is my phone number|what am i thinking|what did i eat yesterday|what is my address)?", "I do not know. You have not told me."),
    ("(what will happen tomorrow|tell me the future|will i be rich|who will win|what are the lottery numbers)?", "I do not know the future."),
    ("(open|play|send|call|book|buy|order|show me) (a song|an email|my mail|a flight|a pizza|a picture|a video|my photos|a movie).", "I cannot do that. I can only read and write text."),
    ("(draw|paint|show me) {x}.", "I cannot draw, but I can tell you a story about it."),
    ("(translate|say|write) this (to|in|into) (japanese|chinese|latin|russian|hindi|korean).", "I do not know that language well enough."),
    ("(how do i|how can i|teach me to|how to) (fix my car|become rich|invest money|hack a computer|lose weight|learn piano|get a job|write a novel|build a house|repair a phone|file taxes|run a marathon).", "I am sorry, I do not know enough about that. Please ask an expert."),
    ("(which|what) (stock should i buy|medicine should i take|lawyer should i call|phone should i buy|car should i buy)?", "I do not know. Please ask an expert."),
    ("(when was|when did) {name} (born|die|live)?", "I do not know when that was."),
    ("(what is|what's|calculate|how much is) {big} (times|*|x|multiplied by) {big2}?", "That is too difficult for me. I can only do small sums."),
    ("(what is|calculate) the (square root|cube|logarithm|integral|derivative) of {big}?", "That is too difficult for me. I can only do small sums."),
    ("(why|why not|how|when|where|who|what|which one|how so|how come)?", "I am not sure what you mean. Can you ask in a full sentence?"),
]


def unknown(r):
    if r.random() < 0.12:
        x = r.choice([
            "".join(r.choice(string.ascii_lowercase) for _ in range(r.randint(4, 14))),
            "".join(r.choice("!?.,;:#+*-/()[]{}@%&") for _ in range(r.randint(2, 8))),
            " ".join(invented(r) for _ in range(r.randint(2, 6))),
            "".join(r.choice("äöüßéèñçøåłşığ你好世界こんにちは안녕мирдаπΩ😀🎉❤👍🙂→∑") for _ in range(r.randint(1, 6))),
        ])
        return x, "I am sorry, I do not understand that.", "I do not understand"
    q, a = r.choice(UNKNOWN)
    inv = invented(r)
    slots = dict(city=r.choice(CITIES), country=r.choice(list(COUNTRIES)), hard=hard(r), inv=inv, Inv=cap(inv), name=r.choice(NAMES),
                 thing=r.choice(OBJECTS), x=r.choice([an(r.choice(OBJECTS)), an(r.choice(list(ANIMALS))), "a picture", an(r.choice(list(ANIMALS)))]),
                 big=r.randint(101, 9999), big2=r.randint(21, 9999))
    q = say(r, q, **slots)
    return (q[:-1] + "?" if q.startswith(("what", "how", "can", "why")) else q), say(r, a, **slots), "I do not know"


JOKES = [
    ("Why did the chicken cross the road?", "To get to the other side!"), ("What do you call a bear with no teeth?", "A gummy bear!"),
    ("Why did the cookie go to the doctor?", "Because it felt crumbly!"), ("What has four wheels and flies?", "A garbage truck!"),
    ("Why was six afraid of seven?", "Because seven ate nine!"), ("What do you call a sleeping bull?", "A bulldozer!"),
    ("Why did the banana go to the doctor?", "Because it was not peeling well!"), ("What do cows read?", "The moos-paper!"),
    ("Why do bees hum?", "Because they forgot the words!"), ("What is a cat's favorite color?", "Purr-ple!"),
    ("Why did the computer go to bed?", "Because it needed to rest a bit!"), ("Why was the token happy?", "Because its stream never broke!"),
    ("Why did the worker cross the road?", "To finish the stream on the other side!"), ("What did one wall say to the other?", "I will meet you at the corner!"),
    ("What do you call cheese that is not yours?", "Nacho cheese!"), ("Why can you not give Elsa a balloon?", "Because she will let it go!"),
    ("How do you make an octopus laugh?", "With ten tickles!"), ("What kind of tree fits in your hand?", "A palm tree!"),
]
RIDDLES = [
    ("What has hands but cannot clap?", "A clock"), ("What has a neck but no head?", "A bottle"), ("What gets wet while it dries?", "A towel"),
    ("What has keys but opens no doors?", "A piano"), ("What goes up and never comes down?", "Your age"), ("What has teeth but cannot bite?", "A comb"),
    ("What has one eye but cannot see?", "A needle"), ("What can you catch but not throw?", "A cold"), ("What is full of holes but holds water?", "A sponge"),
    ("What has legs but cannot walk?", "A table"), ("What runs but never walks?", "A river"), ("What falls but never gets hurt?", "Rain"),
]


def joke(r):
    if r.random() < 0.7:
        q = say(r, "(tell me a joke|joke|make me laugh|say something funny|do you know a joke|tell a joke|a joke|tell me a funny joke|another joke|i want to hear a joke).")
        a, b = r.choice(JOKES)
        return q, f"{a} {b}", None
    a, b = r.choice(RIDDLES)
    if r.random() < 0.5:
        return say(r, "(tell me a riddle|give me a riddle|riddle|do you know a riddle|ask me a riddle)."), f"{a} {b}!", None
    return a, f"{b}!", b


POEM_LINES = [
    ("The {a} sat under a tree,", "as happy as {a}s can be.", "The sun went down, the moon came up,", "and {n} drank tea from a little cup."),
    ("The sun is high, the sky is blue,", "the birds all sing a song for you.", "The {a} runs down the hill to play,", "and so begins a lovely day."),
    ("A {c} leaf fell on the ground,", "it did not make a single sound.", "The {a} came by and stopped to see", "how quiet a little leaf can be."),
    ("The stars are bright, the night is long,", "the wind is humming its old song.", "The {a} is dreaming in its bed", "with soft white clouds around its head."),
    ("Rain on the roof and rain on the street,", "rain on the grass and on my feet.", "The {a} has found a place to hide,", "and waits for the sun on the dry side."),
    ("I have a {t}, it is {c} and small,", "I like it best of them all.", "I take it along wherever I go,", "through summer sun and winter snow."),
    ("Roses are red, violets are blue,", "the {a} is happy, and so are you.", "Sugar is sweet, the day is bright,", "sleep very well when it is night."),
    ("Snow on the hill and snow on the tree,", "the {a} is as cold as cold can be.", "Come in, little friend, and sit by the fire,", "and rest for a while, for you must tire."),
]


def poem_text(r, topic=None):
    a = topic if topic in ANIMALS and topic not in ("sheep", "fish", "deer", "goose", "mouse", "wolf") else r.choice("dog cat frog bear rabbit hen duck owl pig goat fox".split())
    lines = r.choice([p for p in POEM_LINES if topic is None or topic not in ANIMALS or any("{a}" in l for l in p)])
    text = "\n".join(lines).format(a=a, n=r.choice(NAMES), c=r.choice([c for c in COLORS if c != "orange"]), t=r.choice([o for o in OBJECTS]))
    return text.replace("A orange", "An orange").replace("The owls", "The owls")


HAIKU = ["{w} on the {p}, / the {a} waits without a sound, / the {m} moon is high", "a {c} leaf falls down, / the {a} looks up and says: / summer is over", "quiet morning rain, / the {a} sleeps under the tree, / dreaming of the sun"]


def poem(r):
    if r.random() < 0.15:
        q = say(r, "(write|give me|tell me|make|write me) a haiku(| about nature| about the world| for me).")
        text = r.choice(HAIKU).format(w=r.choice(["snow", "rain", "light", "wind"]), p=r.choice(["hill", "field", "roof", "lake"]), a=r.choice(["cat", "owl", "fox", "frog", "deer"]), m=r.choice(["white", "winter", "silver"]), c=r.choice(["red", "brown", "yellow"]))
        return q, "\n".join(cap(l) for l in text.split(" / ")), None
    topic = r.choice([None, None, r.choice("dog cat frog bear rabbit hen duck owl pig goat fox".split())])
    q = say(r, "(write|tell me|say|make|give me|can you write|write me) a (short|little|small||) (poem|rhyme|poem|verse)")
    return q + (f" about {an(topic)}." if topic else "."), poem_text(r, topic), None


# --- stories -----------------------------------------------------------------


def plots(r, s):
    """Every plot is a list of sentences. `s` holds who, where and what."""
    S = lambda phrase: say(r, phrase, **s)
    plots = dict(
        lost=lambda: [S("One (day|morning|afternoon), {n} could not find {his} {c} {t}."), S("{He} looked (under the bed|behind the door|in the kitchen|under the table), but it was not there."),
            S("{He} (felt|was) (very|so|) sad."), S("Then {f} the {b} came (along|by) and asked, \"(What is wrong|Why are you so sad), {n}?\""),
            S("\"I have lost my {t},\" said {n}."), S("\"Let us look for it together,\" said {f}."),
            S("They looked (near the river|behind the old tree|in the tall grass|on the hill) (for a long time|until the sun was low|), and there it was!"),
            S("\"Thank you, {f}!\" (said|cried) {n}."), S("(They played together until it was dark|They went home and ate {food} together|From that day on they were best friends).")],
        shy=lambda: [S("{n} was (very|so|) shy and had no friends."), S("Every day {he} watched the others play in {p}, but {he} did not dare to say hello."),
            S("One (day|morning), a little {b} named {f} sat down next to {him}."), S("\"Do you like {food}?\" asked {f}."),
            S("{n} (nodded|smiled a little|said yes in a small voice)."), S("They (shared|ate) the {food} and (looked at the clouds|told each other jokes|talked about the stars)."),
            S("(Soon|After a while) {n} was not shy any more."), S("Now {n} and {f} (play together every day|meet every morning|are the best of friends).")],
        kite=lambda: [S("One windy (day|morning), {n} went to {p} with {his} new {c} kite."), S("The wind was (strong|very strong), and the kite flew (higher and higher|up and up)."),
            S("(Suddenly|Then) the string broke!"), S("The kite flew (away over the trees|into a very tall tree)."), S("{n} began to (cry|run after it)."),
            S("A {b} named {f} saw it and said, \"(Do not worry|Wait here), I can (reach|get) it.\""), S("{f} (climbed|went) up and brought the kite back."),
            S("{n} was so (happy|glad) that {he} gave {f} (a big hug|all {his} {food}|half of {his} {food})."), S("They flew the kite together until (the evening|the stars came out).")],
        seed=lambda: [S("{n} found a (tiny|small|strange) seed in {p}."), S("{He} put it into the (soft|warm|dark) ground and gave it water every (day|morning)."),
            S("For a (week|long time) nothing happened."), S("\"Be patient,\" said {f} the {b}. \"Good things take time.\""), S("(Then one morning|One sunny day) a little green leaf came out of the ground."),
            S("It grew and grew until it was a (big|tall|beautiful) (flower|tree) with {c} (flowers|petals|leaves)."), S("Everybody came to (see|look at) it."),
            S("\"You were right,\" said {n} to {f}. \"(It was worth the wait|Good things take time).\"")],
        cake=lambda: [S("It was the birthday of {f} the {b}."), S("{n} wanted to bake a cake, but {he} had never baked (one|a cake) before."), S("{He} mixed (flour, eggs and milk|flour, sugar and eggs) in a big bowl."),
            S("(Flour flew everywhere|Soon there was flour on {his} nose), and the kitchen was (very|quite) (messy|white)."), S("The cake came out (flat|crooked|a little burned)."),
            S("{n} was (worried|afraid that {f} would not like it)."), S("But {f} took a bite and (smiled|laughed with joy)."), S("\"This is the best cake I have ever had,\" said {f}, \"because you made it for me.\"")],
        dark=lambda: [S("{n} was afraid of the dark."), S("Every night {he} hid under the blanket and (listened|waited for the morning)."), S("One night {he} heard a small voice (at the window|outside)."),
            S("It was {f} the {b}."), S("\"Come out,\" said {f}. \"I want to show you something.\""), S("{n} was scared, but {he} went (out|outside) and looked up."),
            S("The sky was full of (bright|shining|little) stars."), S("\"You can only see them when it is dark,\" said {f}."), S("(After that|From then on), {n} was not afraid (any more|of the dark any more).")],
        helped=lambda: [S("A big {b} named {f} lived in {p}."), S("{f} thought that {n} was too small to be (useful|of any help)."), S("One day {f} got stuck (in a hole|between two trees|in the mud)."),
            S("{f} called and called, but nobody (came|heard)."), S("Only {n} heard {f} and (came running|came as fast as {he} could)."), S("{n} (pulled and pulled with a rope|ran to get a rope|dug with all {his} strength) until {f} was free."),
            S("\"I was wrong,\" said {f}. \"You are small, but you are (very strong|a great friend).\""), S("(And so they became friends|They walked home side by side|After that, {f} never laughed at anyone small again).")],
        race=lambda: [S("{n} and {f} the {b} wanted to know who was faster."), S("They (ran|had) a race (around the lake|through {p}|to the old bridge)."), S("(At first|In the beginning) {f} was far ahead."),
            S("Then {f} saw some {food} and stopped to eat."), S("{n} went on, step by step, and did not stop."), S("When {f} looked up, {n} was (already|) at the end."),
            S("\"You won!\" said {f}. \"How did you do it?\""), S("\"I just kept going,\" said {n} (with a smile|and laughed).")],
        treasure=lambda: [S("{n} found an old map in a {c} (bottle|box|book)."), S("There was a red cross on it, in the middle of {p}."), S("{n} asked {f} the {b} to come along."),
            S("They walked (past the mill|over the bridge|along the river) and (through the woods|up the hill|across the field)."), S("At the cross they (dug|began to dig) a deep hole."),
            S("They found a (small|heavy|wooden) chest, and in it was (a {t}|an old letter|a {c} stone)."), S("It was not gold, but {n} did not mind."), S("\"The best part was the way here with you,\" said {n}.")],
        river=lambda: [S("{n} wanted to cross the river, but there was no bridge."), S("On the other side sat {f} the {b}, who was all alone."), S("{n} (thought for a long time|had an idea)."),
            S("{He} tied (some branches|three logs|old boards) together and made a (raft|little boat)."), S("The water was (fast|cold and fast), and the (raft|boat) (shook|turned) (left and right|around)."),
            S("But {n} held on and (reached|came to) the other side."), S("\"Nobody has ever come to visit me,\" said {f}."), S("They (drank tea|ate {food}) and (talked|laughed) until (evening|the moon was up).")],
        wish=lambda: [S("One night {n} saw a falling star over {p}."), S("{He} closed {his} eyes and made a wish."), S("\"I wish I had a friend,\" {he} said (softly|quietly)."), S("The next morning there was a knock at the door."),
            S("It was a {b} with a {c} {t}."), S("\"My name is {f},\" said the {b}. \"I am new here. Do you want to play?\""), S("{n} looked up at the sky and (smiled|said thank you)."), S("(Some wishes come true|The wish had come true).")],
        share=lambda: [S("{n} had a basket full of {food}."), S("{He} wanted to keep them all."), S("Then {he} met {f} the {b}, who was (hungry|very hungry) and (cold|tired)."), S("{n} looked at the basket and then at {f}."),
            S("\"(Here, take some|You can have half),\" said {n}."), S("They sat down (under a tree|on a stone|in the sun) and ate together."), S("\"They taste better when we share,\" said {n}, and {f} (agreed|nodded).")],
        snow=lambda: [S("In the night it had snowed, and {p} was all white."), S("{n} and {f} the {b} built a (big|huge|funny) snowman."), S("They gave him a carrot for a nose and a {c} {scarf}."), S("\"He looks (cold|lonely),\" said {n}."),
            S("So they built (a second one|another snowman) next to him."), S("When the sun came out, the snowmen (got|became) smaller and smaller."), S("\"Do not be sad,\" said {f}. \"They will come back next winter.\"")],
        music=lambda: [S("{n} loved music, but {he} could not play (anything|a thing)."), S("One day {he} found an old (flute|drum|guitar) in {p}."), S("The first sounds were (awful|terrible|very loud)."), S("{f} the {b} held {his2} ears and (laughed|ran away)."),
            S("But {n} practiced every day, (in the morning and in the evening|even in the rain)."), S("(After a month|In spring) {he} played a song so (sweet|lovely) that even the birds were quiet."), S("{f} came (back|closer) and said, \"Please, play it again.\"")],
        rain=lambda: [S("It rained all day in {p}."), S("{n} sat at the window and was bored."), S("\"(What can we do when it rains|There is nothing to do)?\" {he} (said|sighed).").replace("nothing to do?", "nothing to do,"),
            S("{f} the {b} put on (big boots|rubber boots) and said, \"Come with me!\""), S("They jumped into every puddle, (big and small|one after the other)."), S("They were wet (from head to toe|all over), and they laughed (and laughed|a lot)."), S("\"I hope it rains again tomorrow,\" said {n}.")],
        message=lambda: [S("In {p} there was a tower where {n} read long letters out to the people."), S("One evening {n} fell asleep in the middle of a sentence."), S("The people waited and wondered (how it went on|what came next)."),
            S("But {f} the {b} had followed every word."), S("{f} climbed up the tower and read on, exactly at the next word."), S("No word was lost, and none was said twice."), S("In the morning {n} thanked {f}, and they (shared|ate) some {food}.")],
        robot=lambda: [S("{n} built a (little|small) robot out of (old cans|a {c} box|spoons and wire)."), S("The robot could only say one word: \"Hello.\""), S("{n} taught it a new word every day."), S("It learned \"{t}\" and \"{b}\" and \"friend\"."),
            S("One day {n} was (sad|ill) and stayed in bed."), S("The robot (rolled|came) to the bed and said, \"Hello, friend.\""), S("{n} had to (smile|laugh), and soon {he} felt (better|much better).")],
    )
    return plots


def story_parts(r, hero=None, name=None, place=None, thing_=None, plot=None):
    """The slots of a story, with what was asked for kept."""
    name = name or r.choice(NAMES)
    hero = hero or r.choice(["boy" if name in BOYS else "girl"] * 2 + "dog cat rabbit mouse fox bear owl frog duck hedgehog dragon robot squirrel turtle penguin lion elephant".split())
    girl = name in GIRLS
    friend_kind = r.choice([k for k in "bear fox owl rabbit mouse dog cat duck frog squirrel turtle hedgehog goat crow".split() if k != hero])
    s = dict(n=name, h=hero, he="she" if girl else "he", He="She" if girl else "He", his="her" if girl else "his", him="her" if girl else "him",
             p=place or r.choice(PLACES), c=r.choice([c for c in COLORS if c != "orange"]), t=thing_ or r.choice([o for o in OBJECTS if o != "umbrella"]),
             b=friend_kind, f=r.choice([n for n in NAMES if n != name]), food=r.choice(FOODS), scarf=r.choice(["scarf", "hat"]))
    s["his2"] = "her" if s["f"] in GIRLS else "his"
    opening = say(r, r.choice([
        "Once upon a time there was a (little|small|young|kind|curious|brave) {h} named {n}, who lived in {p}.",
        "Once upon a time, in {p}, there lived a (little|small|young|clever|happy) {h} named {n}.",
        "There was once a (little|small|kind|curious) {h} called {n}. {He} lived in {p}.",
        "{n} was a (little|small|young|cheerful|brave) {h} who lived in {p}.",
        "Long ago, a (little|young|kind|quiet) {h} named {n} lived in {p}.",
    ]), **s)
    table = plots(r, s)
    key = plot or r.choice(list(table))
    closing = r.choice([""] * 4 + ["The end.", "And that is the end of the story.", f"And {name} was very happy.", "It was a good day.", f"That night {name} slept very well."])
    return s, opening, table[key](), closing, key


def tell(r, **kw):
    s, opening, body, closing, _ = story_parts(r, **kw)
    return s, " ".join([opening, *body, closing]).strip()


def story(r):
    kw, about = {}, ""
    x = r.random()
    heroes = "dog cat rabbit mouse fox bear owl frog duck hedgehog dragon robot squirrel turtle penguin lion elephant horse pig cow bird fish wolf tiger monkey".split()
    if x < 0.4:
        kw["hero"] = r.choice(heroes)
        about = " about " + say(r, "(a|a little|a small|the||) {h}", h=kw["hero"])
        about = re.sub(r" a ([aeiou])", r" an \1", about)
    if x < 0.12 or 0.4 <= x < 0.55:
        kw["name"] = r.choice(NAMES)
        about += (r.choice([" named ", " called ", " with the name "]) if about else " about ") + kw["name"]
    if r.random() < 0.1:
        kw["place"] = r.choice(PLACES)
        about += " in " + kw["place"].replace("a small village", "a village")
        kw["place"] = "a village" if kw["place"] == "a small village" else kw["place"]
    if not kw and r.random() < 0.15:
        kw["thing_"], kw["plot"] = r.choice([o for o in OBJECTS if o != "umbrella"]), "lost"
        about = " about a lost " + kw["thing_"]
    long = r.random() < 0.2
    q = say(r, "(tell me|tell|write|write me|can you tell me|read me|i want to hear|give me|make up|could you tell me|please tell me) a " + ("(long|longer)" if long else "(short|little|nice|tiny|bedtime|small|happy||||)") + " story" + about + ("?" if r.random() < 0.1 else "."))
    if not about and r.random() < 0.15:
        q = say(r, "(story please|a story|tell me a tale|once upon a time|story time|another story|tell another story|i want a story|a bedtime story).")
    s, text = tell(r, **kw)
    if long:
        # A second day with the same hero in the same place.
        while True:
            _, _, body, closing, key = story_parts(r, hero=s["h"], name=s["n"], place=s["p"])
            if body[0] not in text:
                break
        text += "\n\n" + r.choice(["The next day was different. ", "A week later, something new happened. ", "But that was not all. ", "Then came the summer. "]) + " ".join(body + [closing]).strip()
    return q, text, None


def advice(r):
    """Short pieces of several sentences that are no stories."""
    who, a, c = r.choice(NAMES), r.choice(list(ANIMALS)), r.choice(list(COUNTRIES))
    x = r.randrange(4)
    if x == 0:
        q = say(r, "(write|write me|make|give me) a (sentence|short sentence|simple sentence) (about|with) {a}.", a=r.choice([an(a), "the word " + a]))
        return q, say(r, "(The {a} is {c} and likes {f}|I saw {x} in {p} today|My friend {n} has a picture of {x}|A young {a} sat in {p} and looked at the sky).", a=a, x=an(a), c=ANIMALS[a][5], f=r.choice(FOODS), p=r.choice(PLACES), n=who), None
    if x == 1:
        q = say(r, "(write|write me) a (short|) (letter|email|message|note) to (my friend|) {n}.", n=who)
        return q, say(r, "Dear {n},\n(how are you|I hope you are well)? I am (fine|very well). (Yesterday I saw {x} in {p}|Today I cooked {f}|The weather is nice here). (Please write soon|See you soon|I hope to see you soon).\nYour friend", n=who, x=an(a), p=r.choice(PLACES), f=r.choice(FOODS)).replace("I hope you are well?", "I hope you are well."), None
    if x == 2:
        q = say(r, "(describe|tell me about) (your day|a nice day|a perfect day|a day in {s}).", s=r.choice(KINDS["season"]))
        return q, say(r, "(The sun is shining|It is a bright morning|The air is fresh). I (eat {f}|drink some tea) and go to {p}. There I meet {n}, and we (play|talk|walk) until (noon|evening). (It is a good day|What a nice day).", f=r.choice(FOODS), p=r.choice(PLACES), n=who), None
    q = say(r, "(describe|tell me about|write about) (spring|summer|autumn|winter).")
    season = re.search("spring|summer|autumn|winter", q)[0]
    months = [m for m in MONTHS if MONTH_SEASON[m] == season]
    return q, f"In {season} {SEASON[season]}. The months of {season} are {join(months)}. " + {"spring": "People plant seeds and open their windows.", "summer": "People swim and eat ice cream.", "autumn": "People pick apples and fly kites.", "winter": "People drink hot tea and build snowmen."}[season], cap(SEASON[season])


# --- memory over turns -------------------------------------------------------

# what is told, how it is said, what is answered, how it is asked, what is answered then
MEMORY = {
    "name": ("(my name is {v}|i am {v}|i am called {v}|call me {v}|you can call me {v}|hi, i am {v}|hello, my name is {v}|hey, my name is {v})", "(Nice to meet you, {v}|Hello, {v}|Hi, {v}. Nice to meet you)!",
             "(what is my name|do you know my name|do you remember my name|who am i|say my name|what was my name|can you tell me my name)?", "Your name is {v}.", lambda r: r.choice(NAMES) if r.random() < 0.7 else cap(invented(r))),
    "age": ("(i am {v} years old|my age is {v}|i turned {v}|i am {v} years of age)", "(That is good to know|{v} is a nice age)!", "(how old am i|what is my age|do you remember my age)?", "You are {v} years old.", lambda r: str(r.randint(3, 90))),
    "color": ("(my favorite color is {v}|i like {v} best|the color i like most is {v}|my favourite color is {v})", "{V} is a (nice|lovely|beautiful) color!", "(what is my favorite color|which color do i like|do you remember my favorite color|what color do i like)?", "Your favorite color is {v}.", lambda r: r.choice(COLORS)),
    "city": ("(i live in {v}|i am from {v}|my home is in {v}|my city is {v})", "{v} (sounds nice|must be a nice place|is a nice place)!", "(where do i live|where am i from|which city do i live in|do you remember where i live)?", "You live in {v}.", lambda r: r.choice(CITIES)),
    "food": ("(my favorite food is {v}|i love to eat {v}|i like {v} most of all foods|the food i like best is {v})", "{V} (is|are) tasty!", "(what is my favorite food|what do i like to eat|do you remember my favorite food)?", "Your favorite food is {v}.", lambda r: r.choice("pizza,soup,rice,pasta,bread,cheese,cake,chocolate,honey,salad".split(","))),
    "pet": ("(i have a pet named {v}|my pet is called {v}|my pet's name is {v}|the name of my pet is {v})", "{v} is a (nice|good|lovely) name!", "(what is my pet's name|what is my pet called|do you remember the name of my pet)?", "Your pet is called {v}.", lambda r: r.choice(PET_NAMES)),
    "dog": ("(i have a dog named {v}|my dog is called {v}|my dog's name is {v})", "{v} is a (nice|good|lovely) name for a dog!", "(what is my dog's name|what is my dog called|what is the name of my dog)?", "Your dog is called {v}.", lambda r: r.choice(PET_NAMES)),
    "friend": ("(my friend is called {v}|my best friend is {v}|my friend's name is {v})", "{v} must be a good friend!", "(what is my friend's name|who is my friend|who is my best friend|what is my friend called)?", "Your friend is called {v}.", lambda r: r.choice(NAMES)),
    "number": ("(remember the number {v}|my lucky number is {v}|the secret number is {v}|please remember {v}|the number is {v}|my favorite number is {v})", "(I will remember {v}|All right, {v})!", "(what was the number|which number did i tell you|what is the number|what number did i say|what is my number)?", "The number is {v}.", lambda r: str(r.randint(0, 999))),
    "word": ("(remember the word {v}|the secret word is {v}|the password is {v}|please remember the word {v})", "(I will remember it|All right, I will remember the word)!", "(what was the word|what is the secret word|which word did i tell you|what is the password|what word should you remember)?", "The word is {v}.", lambda r: r.choice([r.choice(OBJECTS), r.choice(list(ANIMALS)), invented(r)])),
    "job": ("(i am a {v}|i work as a {v}|my job is {v})", "Being a {v} (is a good job|must be interesting)!", "(what is my job|what do i do|what do i work as)?", "You are a {v}.", lambda r: r.choice([j for j in KINDS["job"]])),
}
NOT_TOLD = {"name": "your name", "age": "your age", "color": "your favorite color", "city": "where you live", "food": "your favorite food", "pet": "the name of your pet",
            "dog": "the name of your dog", "cat": "the name of your cat", "friend": "the name of your friend", "number": "a number", "word": "a word", "job": "your job"}


# --- chats -------------------------------------------------------------------

SKILLS = [(sums, 18), (fact, 10), (realm, 14), (identity, 4), (animal, 9), (country, 7), (colors, 4), (listing, 16), (category, 4), (thing, 7), (words, 8), (order, 8), (count, 4),
          (compare, 5), (word_problem, 5), (repeat, 8), (context, 7), (as_json, 4), (greet, 7), (feeling, 2), (unknown, 10), (joke, 2), (poem, 2), (story, 4), (advice, 1)]
SKILL_FUNCTIONS, SKILL_WEIGHTS = zip(*SKILLS)

HELPFUL = """You are a helpful assistant.|You are a helpful assistant.|You are a helpful AI assistant.|You are helpful.|You are a kind and helpful assistant.|You are the assistant of Realm.|You are a friendly assistant. Answer the user's questions.|You are an assistant.|Be helpful.|Be polite.|You are a helpful, honest and harmless assistant.|Answer the questions of the user.|You are a chatbot.|You are Realm's built-in model.|Talk to the user.|You are a teacher for small children.|Use simple words.""".split("|")
STYLES = {
    "short": ("(Answer in one word|Answer in one or two words|Be very short|Answer as briefly as you can|Give only the answer|Answer with as few words as possible|Reply with one word only|Keep it very short|Be brief|You are terse|Only give the final answer).", lambda full, short: short or full),
    "pirate": ("(You are a pirate|Talk like a pirate|Answer like a pirate|You are a friendly pirate).", lambda full, short: "Arr! " + full),
    "cat": ("(You are a cat|Answer like a cat|You are a talking cat|Pretend to be a cat).", lambda full, short: full + " Meow."),
    "json": ("(Answer in JSON|Reply in JSON|Always answer with a JSON object|Answer with JSON only|Respond in JSON).", lambda full, short: full if full[:1] in "{[" else json.dumps({"answer": short or full}, ensure_ascii=False)),
}


class Chat:
    """A conversation that knows what it has been told."""

    def __init__(self, r):
        self.r, self.known, self.told, self.style, self.messages = r, {}, [], None, []
        self.me = None
        x = r.random()
        if x < 0.32:
            self.messages.append(("system", r.choice(HELPFUL)))
        elif x < 0.44:
            self.style = r.choice(["short", "short", "short", "pirate", "json"])
            text = say(r, STYLES[self.style][0])
            self.messages.append(("system", r.choice(["", "", r.choice(HELPFUL) + " "]) + text))
        elif x < 0.48:
            self.me = r.choice(NAMES) if r.random() < 0.8 else cap(invented(r))
            self.messages.append(("system", say(r, "(Your name is {n}|You are {n}|You are {n}, a helpful assistant|You are a helpful assistant named {n}|You are called {n}).", n=self.me)))
        elif x < 0.51:
            key = r.choice(list(MEMORY))
            v = MEMORY[key][4](r)
            self.known[key] = v
            label = {"name": "name", "age": "age", "color": "favorite color", "city": "city", "food": "favorite food", "pet": "pet", "dog": "dog", "cat": "cat", "friend": "friend", "number": "number", "word": "secret word", "job": "job"}[key]
            self.messages.append(("system", f"The user's {label} is {v}." if key not in ("number", "word") else f"The {label} is {v}."))

    def add(self, q, full, short=None, plain=False):
        one_off = None
        if not self.style and not plain and short and self.r.random() < 0.04:
            one_off = self.r.choice(["short", "short", "json"])
            q = q.rstrip() + ("" if q.rstrip().endswith(("?", ".")) else ".") + " " + say(self.r, STYLES[one_off][0])
        style = self.style or one_off
        text = STYLES[style][1](full, short) if style else full
        self.messages += [("user", q), ("assistant", text)]
        self.told.append(q)

    def turn(self):
        r = self.r
        f = r.choices(SKILL_FUNCTIONS, SKILL_WEIGHTS)[0]
        q, full, short = f(r)
        if self.me and f in (realm, identity):
            return self.who()
        if f is repeat:
            # What is to be repeated is kept letter by letter.
            return self.add(q.rstrip(".") if r.random() < 0.6 else cap(q), full, short, plain=True)
        self.add(ask(r, q) if "\n" not in q else q, full, short)
        if r.random() < 0.12:
            self.follow_up(f)

    def follow_up(self, f):
        """A question that makes sense only after the one before."""
        r = self.r
        if f is animal:
            a = r.choice(list(ANIMALS))
            last = self.told[-1].lower()
            sound, legs, young, home, food, *_ = ANIMALS[a]
            q = say(r, "(and|what about|how about|and what about) {a}?", a=an(a))
            if ("sound" in last or "say" in last or "noise" in last) and sound != "nothing":
                self.add(ask(r, q), f"{cap(an(a))} says {sound}.", cap(sound))
            elif "legs" in last:
                self.add(ask(r, q), f"{cap(an(a))} has {WORDS[int(legs)] if legs != '0' else 'no'} legs.", legs)
            elif " eat" in last:
                self.add(ask(r, q), f"{cap(an(a))} eats {food}.", cap(food))
            elif "baby" in last:
                self.add(ask(r, q), f"A baby {a} is called {an(young)}.", cap(young))
        elif f is country and "capital of" in self.told[-1].lower():
            c = r.choice(list(COUNTRIES))
            self.add(ask(r, say(r, "(and|what about|how about|and of) {c}?", c=c)), f"The capital of {c} is {COUNTRIES[c][0]}.", COUNTRIES[c][0])
        elif f is colors and "olo" in self.told[-1]:
            t = r.choice([k for k in COLORS_OF if k not in MASS and k not in THE])
            self.add(ask(r, say(r, "(and|what about|how about) {t}?", t=an(t))), f"{cap(an(t))} is {COLORS_OF[t]}.", cap(COLORS_OF[t]))
        elif f is joke:
            a, b = r.choice(JOKES)
            self.add(ask(r, say(r, "(another one|another|tell me another one|one more|again|more|haha, another one|tell me another).")), f"{a} {b}")
        elif f is story:
            _, text = tell(r)
            self.add(ask(r, say(r, "(another one|another|tell me another one|one more|again|tell me another story|more).")), text)
        elif f is sums:
            last = re.search(r"(-?\d+)\D*$", self.messages[-1][1])
            c = int(last[1]) if last else -1
            if 0 <= c <= 60 and self.style is None:
                b = r.randint(1, 30)
                if r.random() < 0.5 or b > c:
                    if not held_out(c, "+", b):
                        self.add(say(r, "(and|now|) (plus|add) {b}(?||)", b=b), f"{c} + {b} = {c + b}.", str(c + b))
                elif not held_out(c, "-", b):
                    self.add(say(r, "(and|now|) (minus|subtract|take away) {b}(?||)", b=b), f"{c} - {b} = {c - b}.", str(c - b))
        else:
            q, a = r.choice([g for g in GREETINGS if g[1] and re.search("thanks|good job|are you sure", g[0])])
            a = say(r, a)
            self.add(ask(r, say(r, q)), a, a)

    def tell_me(self):
        r = self.r
        key = r.choice(list(MEMORY)) if r.random() < 0.6 else "name"
        told, ack, *_, make = MEMORY[key]
        v = self.known[key] = make(r)
        q = say(r, told, v=v)
        if q.startswith(("i am a ", "i work as a ")) and v[0] in "aeiou":
            q = q.replace(" a ", " an ")
        if r.random() < 0.4:
            q = q.replace("i am ", "i'm ").replace("name is ", "name's " if r.random() < 0.3 else "name is ")
        if r.random() < 0.7:
            q = cap(q)
        elif key != "word" and (key != "name" or v in NAMES):
            q = q.lower()  # but an invented name in lower case could not be written right
        q += r.choice([".", ".", "", "!"])
        full = say(r, ack, v=v, V=cap(v))
        if r.random() < 0.15:
            # Told and asked something else in one breath.
            f = r.choice([sums, fact, colors, country, animal])
            q2, full2, short2 = f(r)
            return self.add(q.rstrip(".!") + ". " + ask(r, q2), full2, short2)
        self.add(q, full, full)

    def recall(self):
        r = self.r
        key = r.choice(list(self.known)) if self.known and r.random() < 0.85 else r.choice(["name", "name", "name", "age", "city", "color", "food", "pet", "job"])
        _, _, asked, answer, _ = MEMORY[key]
        q = ask(r, say(r, asked))
        if key in self.known:
            v = self.known[key]
            self.add(q, say(r, answer, v=v), v)
        else:
            a = f"You have not told me {NOT_TOLD[key]} yet."
            self.add(q, a, "I do not know")

    def look_back(self):
        r = self.r
        if not self.told:
            return self.add(ask(r, "what was my first question?"), "You have not asked me anything before this.", "None")
        which = r.choice(["first", "last"])
        i = 0 if which == "first" else -1
        if "\n" in self.told[i] or len(self.told[i]) > 100:
            return self.turn()
        self.add(ask(r, say(r, "(what was my {w} question|what did i ask {x}|what was my {w} message)?", w=which, x="first" if i == 0 else "just now")), f"You wrote: {self.told[i]}", self.told[i], plain=True)

    def who(self):
        r = self.r
        q = ask(r, say(r, "(what is your name|who are you|do you have a name|how are you called|what should i call you|what is your name)?"))
        self.add(q, f"My name is {self.me}." if r.random() < 0.5 else f"I am {self.me}.", self.me)


def chat(r, turns=None):
    c = Chat(r)
    turns = turns or r.choices([1, 2, 3, 4, 6, 9], [46, 22, 16, 9, 5, 2])[0]
    remember = turns > 1 and r.random() < 0.6 or bool(c.known)
    done = 0
    while done < turns:
        x = r.random()
        if c.me and x < 0.35:
            c.who()
        elif remember and done == 0 and not c.known and x < 0.8:
            c.tell_me()
        elif remember and x < 0.12:
            c.tell_me()
        elif remember and (x < 0.4 or done == turns - 1 and x < 0.75):
            c.recall()
        elif x < 0.44 and turns > 1 and done:
            c.look_back() if r.random() < 0.35 else c.turn()
        elif turns == 1 and x < 0.02:
            c.recall()
        else:
            c.turn()
        done += 1
    return c.messages


def long_chat(r):
    return chat(r, r.randint(12, 40))


def needle(r):
    """A long message with one question at its end."""
    texts, facts = [], []
    for _ in range(r.randint(3, 9)):
        s, text = tell(r)
        texts.append(text)
        facts.append(s)
    names = [s["n"] for s in facts]
    good = [s for s in facts if names.count(s["n"]) == 1]
    if not good:
        return long_chat(r)
    s = r.choice(good)
    q, a = r.choice([(f"Where did {s['n']} live?", f"{s['n']} lived in {s['p']}."), (f"What was {s['n']}?", f"{s['n']} was {an(s['h'])}.")])
    head = r.choice(["", "Read this: ", "Here are some stories.\n\n", "Read these stories and answer the question.\n\n"])
    return [("user", head + "\n\n".join(texts) + "\n\n" + q), ("assistant", a)]


# --- plain text --------------------------------------------------------------


def statement(r):
    """A fact as a sentence, so that its beginning can be completed."""
    x = r.random()
    if x < 0.16:
        c = r.choice(list(COUNTRIES))
        return f"The capital of {c} is {COUNTRIES[c][0]}."
    if x < 0.3:
        t = r.choice(list(COLORS_OF))
        return f"{cap(named(t) if t in MASS or t in THE else 'the ' + t)} is {COLORS_OF[t]}."
    if x < 0.45:
        a = r.choice(list(ANIMALS))
        return r.choice(about_animal(r, a).split(". ")[:1]).rstrip(".") + "."
    if x < 0.55:
        return r.choice(FUN)
    if x < 0.65:
        a, b = r.choice(OPPOSITES)
        return f"The opposite of {a} is {b}."
    if x < 0.78:
        t = r.choice(list(THINGS))
        return f"{cap(named(t))} is {THINGS[t][0]}. {THINGS[t][1]}"
    if x < 0.9:
        return r.choice([f[1] for f in FACT_LIST if f[1][0].isalpha() and not f[1].startswith(("Yes", "No,", "print", "fn", "console", "echo"))]).replace("{{", "{").replace("}}", "}")
    return r.choice([f[1] for f in REALM_LIST if f[1].startswith(("Realm", "A worker", "The gateway", "A tenant", "In Realm", "Each tenant", "Temperature", "A seed"))])


def plain(r):
    x = r.random()
    if x < 0.18:
        s, text = tell(r)
        return f"{r.choice(['The Story of', 'The Tale of', 'A Story about'])} {s['n']}\n\n{text}" if r.random() < 0.12 else text
    if x < 0.42:
        return r.choice([" ", "\n"]).join(statement(r) for _ in range(r.randint(1, 8)))
    if x < 0.50:
        a, k, n = r.randint(0, 40), r.choice([1, 1, 1, 1, 2, 5, 10]), r.randint(5, 25)
        return r.choice([", ", " ", "\n"]).join(str(a + k * i) for i in range(n))
    if x < 0.6:
        seq = r.choice([DAYS, MONTHS, list(string.ascii_uppercase), list(string.ascii_lowercase), WORDS[1:], ["red", "orange", "yellow", "green", "blue", "indigo", "violet"], KINDS["planet"], KINDS["season"]])
        return r.choice([", ", " ", "\n", ", "]).join(seq)
    if x < 0.76:
        out = []
        for _ in range(r.randint(3, 24)):
            while True:
                q, full, _ = sums(r)
                m = re.match(r"-?\d+ [-+*/] \d+ = -?\d+", full)
                if m:
                    break
            out.append(m[0])
        return "\n".join(out)
    if x < 0.84:
        out = []
        for _ in range(r.randint(2, 6)):
            q, full, _ = r.choice([fact, colors, animal, country, sums, order, thing, realm, words])(r)
            q = cap(q.rstrip("?. =") + "?")
            out.append(f"Q: {q}\nA: {full}" if "\n" not in full else f"Q: {q}\nA: Yes.")
        return "\n\n".join(out)
    if x < 0.88:
        return poem_text(r)
    if x < 0.94:
        n = r.choice(NAMES)
        return say(r, "(Hello|Hi|Hello there)(, my name is {n}|, I am {n}|. My name is {n}). I am {a} years old and I live in {c}. I have a {pet} named {pn}. (My favorite color is {col}|I like {l}). (In my free time I read books|On Sundays I go to {p}|I want to be a {j} one day|My best friend is called {f}).",
                   n=n, a=r.randint(5, 90), c=r.choice(CITIES), pet=r.choice(KINDS["pet"]), pn=r.choice(PET_NAMES), col=r.choice(COLORS), l=r.choice(LIKES), p=r.choice(PLACES), j=r.choice(KINDS["job"]), f=r.choice([x for x in NAMES if x != n]))
    if x < 0.97:
        kind = r.choice(list(KINDS))
        items = some(r, kind, min(10, len(KINDS[kind])))
        return cap(plural(kind)) + ":\n" + "\n".join(f"{i}. {cap(t)}" if len(items) % 2 else f"- {cap(t)}" for i, t in enumerate(items, 1))
    return r.choice(["The quick brown fox jumps over the lazy dog.", "Hello, world!", "Roses are red, violets are blue, sugar is sweet, and so are you.", "Twinkle, twinkle, little star, how I wonder what you are.",
                     "Once upon a time, there was nothing but the sea and the sky. Then came the first bird, and it began to sing.", "This is a test. It is only a test, and everything works.",
                     "It was a dark and stormy night. The wind howled around the house, and nobody could sleep.", "To be or not to be, that is the question.", "An apple a day keeps the doctor away.", "The early bird catches the worm."])


def long_plain(r):
    """Chapters about one hero, so that far positions are trained too."""
    s, text = tell(r)
    out = ["Chapter 1\n\n" + text]
    for i in range(2, r.randint(4, 14)):
        _, opening, body, closing, _ = story_parts(r, hero=s["h"], name=s["n"], place=s["p"])
        out.append(f"Chapter {i}\n\n" + " ".join(body + [closing]).strip())
    return "\n\n".join(out)


# --- the corpus --------------------------------------------------------------

SHORT = [(chat, 91), (plain, 9)]
LONG = [(long_chat, 50), (long_plain, 25), (needle, 25)]  # to fill the whole context


def documents(seed, kinds=SHORT):
    """Without end: the same documents in the same order for the same seed."""
    r = random.Random(seed)
    makers, weights = zip(*kinds)
    while True:
        yield r.choices(makers, weights)[0](r)


if __name__ == "__main__":
    for _, d in zip(range(40), documents(1)):
        print(d if isinstance(d, str) else "\n".join(f"[{role}] {text}" for role, text in d), end="\n-----\n")
