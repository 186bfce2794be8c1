"""The words by which the tagger knows a name, a street, a date or an ordinary word.

Plain lists of common words and of common given and family names of many countries; no list of
people. Names of places come from the tables that the ``phonenumbers`` library carries.
"""

from __future__ import annotations

from functools import cache
from typing import cast

from shared.errors import MissingDependency

INSTALL = "Run: pip install 'fedslm[query]'"

GIVEN = """
aaron abdul abigail adam adriana agnes ahmed aisha akira alan albert alejandro alessandro alex
alexander alexandra alfred ali alice alicia alina alma amanda amelia amina amir amy ana anders andre
andrea andreas andrew angela anita anja ann anna anne annika anthony antonio arjun arne arthur asha
astrid august aurora barbara beatrice ben benjamin bernard beth bianca bill birgit bjorn bob bogdan
brandon brenda brian bridget bruno camila carl carla carlos carmen carol caroline catherine cecilia
chantal charles charlotte chen chloe chris christian christina christine christopher cindy claire
clara claudia colin connor craig cynthia daisuke daniel daniela david deborah denise dennis derek
diana diego dimitri dmitri dominic donald donna dorothy douglas edith eduardo edward eileen elena
eleanor elias elif elisa elizabeth ella ellen elsa emily emil emma emre enrique eric erik erika
ernst esther ethan eva evelyn fabian farah fatima felipe felix fernando fiona florence frances
francesca francesco francis francois frank franz frederick frida gabriel gabriela gary george gerald
gerard giovanni giulia gloria gordon grace graham greta guillaume gustav hannah hans harold harry
hassan heather hector heidi heinrich helen helena henrik henry hiroshi holly hugo ian ibrahim ida
igor ingrid irene isaac isabel isabella ivan jack jacob jacqueline jakob james jamal jan jane janet
janos jasmine jason javier jean jeffrey jennifer jens jeremy jerome jessica jesus jill jing joan
joanna joao joe johan johann johannes john jonas jonathan jorge jose josef joseph joshua joyce juan
judith julia julian julie juliette jun jurgen justin kai karen karim karin karl karla katarina kate
katherine kathleen katja kenji kenneth kevin khalid kim klaus kristina kurt kyle lars laszlo laura
lauren laurent lea leah lena leo leonard leonie leticia lidia liam lily linda lisa liu lorenzo louis
louise luca lucas lucia lucy luis luisa lukas lydia magda magnus malik manuel marc marcel marco
marcus margaret maria mariana marie marina mario mark marlene marta martha martin martina mary mateo
mathieu matilda matteo matthew matthias max maya mei melanie melissa mia michael michaela michelle
miguel mikhail mila milan ming miriam mohammed molly monica monika muhammad nadia nancy naomi
natalia natalie natasha nathan neil nicholas nicole niels nikolai nils nina noah noor nora norman
olaf oleg olga olivia omar oscar otto pablo pamela paola patricia patrick paul paula paulo pavel
pedro peggy penelope per peter petra philip pierre priya rachel rafael rahul raj ralph ramon raquel
ravi raymond rebecca renata ricardo richard rita robert roberto robin rodrigo roger roland roman
ronald rosa rose ross ruben rui russell ruth ryan salma samuel sandra sanjay santiago sara sarah
scott sean sebastian serge sergei sharon sheila shirley silvia simon simone sofia sonia sophia
sophie stefan stefano stella stephanie stephen steven stuart sunil susan susanna sven sylvia takashi
tamara tanya tara tatiana teresa theodore theresa thomas tiffany tim timothy tina tobias tom tomas
tony tracy ulrich ulrike ursula valentina valerie vanessa vera veronica victor victoria vijay
vincent viola violet viktor virginia vivian vladimir walter wanda wei wendy werner wilhelm william
wolfgang xavier yan yasmin yolanda yuki yusuf yvonne zachary zahra zara zoe zofia zsofia
"""
FAMILY = """
abbott ackermann adams aguilar ahmed akhtar albrecht alexander ali allen almeida alvarez andersen
anderson andersson arnold bailey baker bakker balogh banerjee barker barnes barros bauer beck becker
bell bennett berg berger bergman bernard bertrand bianchi bishop black blanc bos bowman boyd bradley
braun brooks brown bruno bryant burke burns butler byrne campbell cardoso carlson carlsson carpenter
carroll carter castillo castro chan chandra chang chapman chavez chen cheng chevalier choi
christensen clark clarke clement cohen cole coleman collins colombo conti cook cooper correia costa
cox crawford cruz cunningham dahl daniels das davies davis dean delgado diaz dietrich dijkstra dixon
dubois duncan dunn dupont duran edwards ekström eriksson esposito evans farkas faure ferguson
fernandes fernandez ferrari ferreira fischer fisher fleming flores fontaine ford foster fox franco
frank franklin fraser freeman fuchs fujita garcia gardner garnier gauthier gibson girard gomes gomez
gonzalez gordon graham grant gray green greco griffin gruber guerin gupta gutierrez haas hall
hamilton hansen hansson hanson harris harrison hart hartmann harvey hassan hayes henderson henry
hernandez herrera hill hoffman hofmann holm holmes horvath howard huang huber hughes hunt hunter
hussain ibrahim ingram ivanov ivanova jackson jacobs jacobsen jansen jansson jenkins jensen jimenez
johansen johansson johnson jones jonsson jordan joshi juarez kaiser kapoor karlsson kaufmann kaya
keller kelly kennedy khan kim king klein knight koch kovacs kowalski kozlov kraus krause kruger
kumar kuznetsov lambert lang larsen larsson laurent lee lefebvre lehmann leroy lewandowski lewis li
lin lindberg lindgren liu long lopes lopez lund lynch macdonald mackenzie madsen maier malik mancini
marino marques marsh marshall martin martinez martins mason matthews mayer mccarthy mcdonald medina
mehta meier mendez mercier meyer miller mills mitchell mohamed moller molnar moore morales moreau
morel moreno moretti morgan morris morrison mukherjee müller murphy murray myers nagy nakamura
navarro nelson nemeth neumann newman nguyen nielsen nikolaev nilsson noble novak nowak nunez nyström
oliveira olsen olsson ortega ortiz owens palmer papadopoulos park parker patel pavlov payne peeters
pereira perez perkins perry petersen peterson petit petrov phillips pierce pinto popescu popov
porter powell price quinn rahman ramirez ramos rao rasmussen reed reid reyes reynolds ribeiro ricci
rice richards richardson richter rivera roberts robertson robinson rocha rodrigues rodriguez rogers
romano romero rose rossi roth rousseau roux ruiz russell russo ryan sanchez sanders santos sato
saunders schmidt schmitt schneider scholz schreiber schröder schubert schulz schwarz scott serrano
shah sharma shaw silva simmons simon simpson singh smirnov smith sokolov sorensen sousa spencer
stein stevens stewart stone suarez sullivan suzuki svensson szabo takahashi tanaka taylor teixeira
thomas thompson torres toth tran tucker turner vargas varga vasquez vega vidal visser vogel volkov
wagner walker wallace walsh wang ward watanabe watson weaver weber webb weiss wells west wheeler
white wilkinson williams williamson wilson winkler winter wolf wong wood woods wright wu yamamoto
yang yilmaz young zhang zhao ziegler zimmermann
"""
DEMONYMS = """
afghan african albanian algerian american arab argentine argentinian armenian asian australian
austrian azerbaijani bangladeshi basque belarusian belgian bolivian bosnian brazilian british
buddhist bulgarian cambodian cameroonian canadian catalan catholic chilean chinese christian
colombian congolese croatian cuban cypriot czech danish dutch egyptian english estonian ethiopian
european filipino finnish flemish french georgian german ghanaian greek greenlandic guatemalan hindu
hungarian icelandic indian indonesian iranian iraqi irish israeli italian jamaican japanese jewish
jordanian kazakh kenyan korean kuwaiti latvian lebanese liberian libyan lithuanian luxembourgish
macedonian malaysian maltese mexican mongolian moroccan muslim nepalese nigerian norwegian pakistani
palestinian peruvian polish portuguese protestant republican romanian russian saudi scottish
senegalese serbian sikh singaporean slovak slovenian somali spanish sudanese swedish swiss syrian
taiwanese thai tibetan tunisian turkish ugandan ukrainian uruguayan venezuelan vietnamese welsh
yemeni zambian zimbabwean australians americans europeans russians swedes danes finns poles germans
turks
"""
MONTHS = """
january february march april may june july august september october november december jan feb mar
apr jun jul aug sept sep oct nov dec monday tuesday wednesday thursday friday saturday sunday mon
tue wed thu fri sat sun mondays tuesdays wednesdays thursdays fridays saturdays sundays
"""
TITLES = """
mr mrs ms miss mx dr prof professor doctor sir madam dame lord lady rev reverend father sister herr
frau monsieur madame mme señor señora captain major colonel sergeant judge nurse
"""
STREETS = """
street st road rd avenue ave lane ln drive dr boulevard blvd court ct place pl square sq terrace way
close crescent row alley parkway pkwy highway hwy circle cir trail suite apt apartment unit floor
flat box building house po strasse straße weg platz allee gasse rue chemin impasse quai via viale
piazza corso calle avenida carrera paseo plaza rua travessa ulica ul utca út ulice gatan gata vägen
väg gade vej veien gate katu tie tänav straat laan plein dreef steenweg cesta odos mahallesi sokak
ridge ridges hill hills bridge forge forges mill mills cove coves gardens garden turnpike crossing
meadow meadows route pass park parks club knoll knolls landing lodge loop manor mall mews mountain
oval orchard path pike pine plain plains point port prairie ranch rapids rest river run shoal shore
skyway spring springs spur squares station stravenue stream summit throughway trace track trafficway
tunnel union valley viaduct view village ville vista walk walks wall wells brook brooks burg bypass
camp canyon cape causeway center cliff common corner corners course creek crest crossroad curve dale
dam divide estate expressway extension falls ferry field fields ford forest fork fort freeway
gateway glen green grove harbor haven heights hollow inlet island isle junction key lake light locks
"""
COMPANIES = """
inc incorporated ltd limited llc llp plc corp corporation company co gmbh ag sa srl spa bv nv ab as
oy group holdings partners associates consulting industries systems solutions technologies
technology labs media bank insurance hospital clinic university college school institute foundation
council ministry department agency bureau committee union association society orchestra club church
museum airlines motors foods enterprises services stores supermarket pharmacy bakery logistics
energy records
"""
COMMON = """
a about above accept access according account accountant accounts across act action active actor
actress actually add added addition additional address administrator adults advance advice advise
affect afford afraid after afternoon again against age aged agencies agency agent ago agree agreed
ahead air airline airport album algebra algorithm alien all allergies allergy allow allowed almost
alone along already also although always am amount an analyst and angle angry animal ankle another
answer antibiotic antibiotics anxiety any anybody anymore anyone anything anyway anywhere apartment
apologies apologise apologize app apparently appear apple apply appointment appreciate approve
architect are area argue arm around arrange array arrival arrive arrived article artist as asap ask
asked asking asthma astronaut astronomy at attach attached attack attend attention author automatic
autumn available average avoid await aware away baby back backup bad bag baker balance ball banana
band bank bar base based basic bath bathroom battery be beach beans bear beautiful became because
become bed bedroom bee beef been beer before began begin behind being believe below benefit best
better between bicycle big bill billing biology birth birthday bit block blocked blood blue board
boarding boat body bond bonds book booked booking boolean born borrow boss bot both bottom bought
box boy brain brainchild brake brand bread break breakfast bridge bring broken brother brought
browser budget bug bugs build building built bus business busy but butcher butter butterfly buy by
cab cable call called caller calling calls calories came camera can cancel cancelled cancer cannot
capital capitalized car card cards care careful carpenter carpet carry case cash cashier castle cat
catch cathedral cause cell celsius center central centre cents certain certificate chair challenge
chance change changed chapter charge charged charger charges chat cheap check checked cheers cheese
chef chemistry chicken child children chocolate choice cholesterol choose church circle city civil
claim class clean clear clerk click clicked client clinic close closed clothes club coast code
coffee cold colleague collect college color colour come comes coming comment common company compare
compile complain complaint complete computer concern concerned concert condition confirm
confirmation connect consider consultant consultation contact contacted contacting contain continue
contract control cook cool copy corner corporate correct cost costs cough could council country
couple course court cover covered crash crazy cream create created credit crime crowd cup currency
current currently curtain customer customers cut dad daily damage dancer dark data database date
daughter day days dead deal dear death debit debt debug decide decided deep deer degree degrees
delay delayed delete deliver delivered delivery dentist department departure deposit depression
derivative describe desert design designer desk dessert detail details detective developer
development device diabetes diagnosed dictionary did die died diesel diet difference different
difficult digital dinner dinosaur direct direction discipline discount discuss disease dishwasher do
dob doctor document documents does dog doing dollar dollars dolphin done door dosage dose double
down download downtown draft dragon drink drive driver driving drop drug duck due during duty each
ear early earth earthquake easily east easy eat economics editor education effect either elbow
electrician electricity elephant else email emails emergency employee employer employs empty end
ended energy engine engineer english enjoy enough enter entire entry equation error especially essay
etc euro euros even evening event ever every everybody everyone everything everywhere evidence
exactly exam example exams except excited excuse expect expected expensive experience expired
explain express extra eye eyes face fact fahrenheit fail failed fair fall false family famous far
farm farmer fast father favorite favourite fax fear fee feedback feel feeling fees feet felines fell
felt female fever few field fight figure file fill film final finally find fine finger finish
finished fire firefighter first fish fisherman fit five fix flat flight flood floor flour flower fly
folder follow followed following food foot for force forecast foreign forest forget forgot form
former forward found founded founder founders four fox framework free friday fridge friend friendly
friends from front fruit full fun function furniture further future fyi galaxy game garage garden
garlic gas gate gave general geography geometry get gets getting ghost gift girl give given gives
giving glad glass go goal goat goes going gold gone good goodbye goose got government grammar
grateful great greetings ground group grow guarantee guard guardian guess guest guide guilty guy gym
had hair half hall hand hands happen happened happy hard hardware has hate have having he head
headache heading headline health hear heard heart heat heating heavy helicopter hello help helped
her here hero heroes hers herself hey hi high hill him himself his history hit hold holiday holidays
home homework honest hope horse hospital hostel hot hotel hotline hotlines hour hours house how
however huge human hundred hungry hurricane hurt husband i ice id idea identity if ill illness image
imagine immediately important in include included including income increase indeed indicate industry
infection inflation information ingredients injury inside insomnia install instead insurance integer
integral interest interested interesting internet interstellar interview into invite invited invoice
involved is island issue issued it itching item items its itself java javascript job join joined
joint journalist journey journeys judge juice jungle jupiter just keep kept key keyboard kid kidney
kids kill killer killers kind king kingdom kitchen kitten knee knew knight know known lab labor
laboratory labour lady lake lamp land landlord language laptop large last late later latest laugh
law lawyer lead learn learned lease leasing least leave leaving lecture led left leg legal lemon
less let letter letters level librarian library lie life lift light lightning like limit line lingo
link lion list listen literature little live lived liver lives living load loan local locate located
location lock locked log login logout long look looking looks loop lose loss lost lot lottery love
loved low lower luck luggage lunch lungs machine mad made magazine magic mail main make makes making
male man manage manager managers many map market marketing marriage married mars match material
mathematics matter mattress may maybe me meal mean means measure meat mechanic media medical
medicine meet meeting member members memory men mention mentioned merchant message messages met
method middle might migraine mile miles milk million mind mine minute minutes miss missed missing
mistake mobile modern mom moment money monitor monkey monster month monthly months monument moon
more morning mortgage mosque most mother motorcycle mountain mouth move moved movie moving mri much
mum murder muscle museum music musician must my myself name named names narrow nation national
nature nausea near nearest nearly neck need needed needs neighbor neighbour neither nervous net
never new news newsletter newspaper next nice night nine no nobody none nor normal north not note
nothing notice notify novel now number numbers nurse object observe obtain obvious occur ocean of
off offer office officer official often oh oil ok okay old on once one onion online only onto open
opened opening operation opinion option options or orchestra order ordered orders original other
others our out outside oven over overdraft own owner package page paid pain paint painter paper
parent parents park parking part partner party pass passed passport password past pasta patient
patients pay paying payment payments pen penguin pension people pepper per perfect perhaps period
permission person personal petrol pharmacist philosophy phone photo photographer physical physician
physics pick picked picture piece pig pill pills pilot pin pizza place plan plane planet plant play
played player please pleased plumber plumbing plus poem poems poet point police policeman policy
polite pool poor popular pork position possible post postal potato pound pounds power practice
prefer pregnancy pregnant prepare prescribed present president press pressure pretty prevent
previous price primary prime prince princess print printer prison private prize probability probably
problem problems process product products professional profile program project promise proof proper
protect protein proud prove provide provided ps psychologist psychology public pull puppy purchase
purchased purpose push put python quality queen query question questions quick quickly quiet quit
quite quote rabbit race rain raise ran rash rate rates rather reach reached read reading ready real
really reason receipt receive received recent recently recipe recipes recipient recommend record
records recover rectangle red ref refer reference refund regarding regards register registered
regret regular reject related release religion remain remember reminder remove rent repair repeat
replace replacement reply report reported reporter request requested require required research
reservation reserve reset resident resignation resigned respect respond response rest restaurant
restore result results resume retail retirement return returned review rewrite rice rich rid ride
right rights ring rise river road robbed robot robots rock rocket role roof room rose round router
rude rule run running safe said salad salary sale sales salt same satisfied saturday saturn save
savings saw say saying says scan scared schedule scheduled scholarship school science scientist
score screen sea season seasons seat second secondary secret secretary secretly section secure
security see seem seems seen select self sell semester send sender sending sent sentence sentenced
separate series serious serve server service services session set settle seven several sex shall
share shares shark she sheep ship shipped shipping shoe shop short should shoulder show showed shown
shut sick side sign signed similar simple simply since sincerely singer single sir sister sit site
situation six size skin sky sleep slow small smart smell smile smith smoke snake snow so social sofa
software sold soldier some somebody someone something sometimes son song songs soon sorry sort sound
soup source south spaceship speak special speed spell spelling spend spent spider spoke sport spring
square ssn staff stage stand standard star stars start started startup state statement station
statistics stay step stick still stock stocks stole stolen stomach stone stop stopped store stories
storm story straight strange street string stroke strong student study stuff stupid style subject
submit subscribe subscription succeed success such sudden suffer sugar suggest suggestion suit
suitcase summarise summarize summer sun sunday supervisor supply support supposed sure surgeon
surgery surname surprised survey suspect sweet swelling swim sword symptom symptoms system table
tablet tablets take taken takes taking talk talked tall tax taxable taxes taxi tea teach teacher
team technician teeth tel telescope tell temperature temple ten tenant term test text than thank
thanks that the their them themselves then theory therapist therapy there therefore these thesis
they thick thief thin thing things think third thirsty this those though thought thousand three
through throw thunder thursday thus ticket tickets tie tiger tight till time times tip tire tired
title titles to today together told tomato tomorrow tone tonight too took tooth top total touch tour
towards tower town track trade traffic train training transaction transactions transfer transferred
translate translation travel treat treatment tree trial triangle tried trip trouble truck true trust
truth try trying tumor turkey turn turned twelve twenty twice two type typical tyre ultrasound
unable unbridled uncle under understand unfortunately uninstall union unit universe unsubscribe
until up update updated upload upon urgent us use used useful user username using usual usually
vacation vaccine vacuum valid valley value vampire variable various vegan vegetable vegetables venus
verify verse version very via victim video view village virus visa visit visited visiting vitamin
vitamins voice vomiting vs wait waited waiter waiting waitress wake walk wall want wanted wants war
warm was wash waste watch water way we weak wealth wear weather web website wedding week weekend
weekly weeks weight welcome well went were west wet whale what whatever when whenever where whether
which while white who whole whom whose why wide wife wifi wild will win wind window wine winter
wisdom wish with withdrawal within without wizard woke wolf woman women won wonder wood word words
wore work worked worker working workout works world worried worry worse worst worth would wound wow
wrist write writer writing written wrong wrote yard year years yellow yes yesterday yet yoga you
young your yours yourself zero zombie
"""


@cache
def word_set(name: str) -> frozenset[str]:
    """Return one of the lists above as a set of lower-case words."""
    return frozenset(cast("str", globals()[name]).split())


@cache
def places() -> frozenset[str]:
    """Return names of countries and towns, in lower case, from the ``phonenumbers`` library.

    Its tables say where in the world a number belongs; ``"Fergus Falls, MN"`` gives the town alone.

    Raises:
        MissingDependency: if ``phonenumbers`` is not installed.
    """
    try:
        from phonenumbers.geodata import GEOCODE_DATA
        from phonenumbers.geodata.locale import LOCALE_DATA
    except ImportError as error:
        msg = "phonenumbers is not installed."
        raise MissingDependency(msg, hint=INSTALL) from error

    found = set()
    for names in LOCALE_DATA.values():
        name = names.get("en", "")
        # "*aa" means: the same as in the language aa.
        found.add(names.get(name[1:], "").lower() if name.startswith("*") else name.lower())
    towns = (names.get("en", "") for names in GEOCODE_DATA.values())
    for town in towns:
        for separator in (",", " - ", "/", "("):
            town = town.split(separator)[0]
        found.add(town.strip().lower())
    common = word_set("COMMON")
    return frozenset(name for name in found if len(name) > 2 and name not in common)


@cache
def place_words() -> frozenset[str]:
    """Return the words that names of places consist of, but for ordinary ones."""
    words = {word for name in places() for word in name.replace("-", " ").split()}
    return frozenset(word for word in words if len(word) > 2) - word_set("COMMON")
