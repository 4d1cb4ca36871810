"""The words of the word tasks: 14 categories of everyday words, each word in one category only.

Words that fit two of the categories are left out ("orange", "organ", "kiwi", "cricket"), and so are plurals.
The words are short in SmolLM2's tokens, in upper case too, so that a prompt and its answer take about 30 tokens.
"""

CATEGORIES: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "animal": """tiger lion elephant horse rabbit monkey wolf bear fox deer cow sheep goat pig dog cat mouse frog
            snake eagle owl shark whale dolphin penguin zebra camel kangaroo squirrel turtle parrot""",
        "fruit": """apple banana grape lemon mango peach pear cherry pineapple melon papaya coconut apricot fig guava
            nectarine plum berry""",
        "colour": """red blue green yellow purple pink brown black white grey crimson scarlet beige teal maroon indigo
            magenta cyan violet""",
        "vehicle": """car bus truck train bicycle scooter tractor boat ship ferry yacht submarine van taxi tram
            ambulance canoe rocket jeep wagon kayak plane bike""",
        "job": """teacher doctor nurse lawyer farmer baker pilot engineer plumber dentist carpenter butcher chef
            waiter soldier actor writer barber tailor sailor journalist accountant electrician librarian mechanic
            scientist secretary cashier architect""",
        "clothing": """shirt jacket coat dress skirt sweater scarf hat sock shoe boot glove belt blouse vest hoodie
            sandal slipper apron cardigan robe uniform suit sneaker mitten raincoat""",
        "body": """arm leg hand foot head nose ear eye mouth knee elbow shoulder finger thumb toe ankle wrist neck
            chin cheek tongue tooth heart lung stomach brain forehead hip throat lip thigh""",
        "tool": """hammer wrench saw drill shovel rake axe chisel ladder crowbar hoe sickle mallet clamp spade
            sander""",
        "instrument": """piano guitar violin drum flute trumpet cello harp clarinet banjo tuba accordion harmonica
            xylophone oboe bassoon mandolin""",
        "furniture": """table chair sofa couch desk bed shelf bookcase cabinet stool bench armchair cupboard mattress
            crib nightstand drawer recliner futon""",
        "drink": """water milk tea coffee juice beer wine cocoa whiskey soda cider rum gin smoothie espresso""",
        "weather": """rain snow wind storm cloud fog hail thunder lightning sunshine tornado blizzard drizzle mist
            frost breeze sleet typhoon""",
        "sport": """football tennis hockey golf swimming boxing rugby baseball skiing wrestling karate judo archery
            surfing bowling handball""",
        "building": """school church museum library hotel bank castle temple factory theater bakery prison stadium
            palace airport warehouse cottage barn""",
    }.items()
}
