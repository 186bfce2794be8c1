"""Patterns of sentences for the tagger of the redactor: ``{KIND}`` stands for personal data."""

from __future__ import annotations

PATTERNS = """
My name is {PERSON}.
my name is {PERSON} and I live in {GPE}
I am {PERSON}, {AGE} years old, and I need help with my account.
This is {PERSON} calling about the order I placed on {DATE_TIME}.
Hello, this is {TITLE} {FAMILY} from {ORGANIZATION}.
Hi {GIVEN}, could you call me back at {PHONE_NUMBER}?
Dear {TITLE} {FAMILY}, thank you for your letter of {DATE_TIME}.
Dear {GIVEN}, we have received your request and will reply soon.
Thanks, {GIVEN}
Kind regards,\\n{PERSON}\\n{ORGANIZATION}\\n{STREET_ADDRESS}\\n{GPE}
Sincerely,\\n{PERSON}\\nTel. {PHONE_NUMBER}
Best wishes\\n{PERSON}\\n{STREET_ADDRESS}\\n{ZIP_CODE} {GPE}
Name: {PERSON}\\nAddress: {STREET_ADDRESS}\\nCity: {GPE}\\nPhone: {PHONE_NUMBER}
Patient: {PERSON}\\nAge: {AGE}\\nDiagnosis: migraine
Date: {DATE_TIME}\\nSender: {PERSON}\\nSubject: invoice
From: {PERSON}\\nTo: {PERSON}\\nOffice: {PHONE_NUMBER}
{PERSON}\\n{STREET_ADDRESS}\\n{GPE}\\n{GPE} {ZIP_CODE}
{PERSON}\\n{ORGANIZATION}\\n{STREET_ADDRESS}\\n{GPE} {ZIP_CODE}\\n{PHONE_NUMBER}
{GIVEN} told {GIVEN} that the meeting is on {DATE_TIME}.
{PERSON} is a very patient teacher and everybody likes {GIVEN}.
{PERSON} was born in {GPE} in {DATE_TIME} and grew up in {GPE}.
{PERSON} works for {ORGANIZATION} in {GPE}.
"I never said that," {FAMILY} told reporters in {GPE}.
"We are pleased with the result," said {PERSON}, who leads {ORGANIZATION}.
According to {PERSON}, the {NRP} government will not change the law.
The {NRP} team arrived in {GPE} on {DATE_TIME}.
The {NRP} singer {PERSON} will give a concert in {GPE} {DATE_TIME}.
{GPE} and {GPE} signed an agreement in {DATE_TIME}.
The prime minister of {GPE} met {PERSON} in {GPE}.
She moved from {GPE} to {GPE} when she was {AGE}.
I was travelling in {GPE} when my card was stolen.
I am flying to {GPE} on {DATE_TIME}, do I need a visa?
What is the weather like in {GPE} in {DATE_TIME}?
How far is it from {GPE} to {GPE}?
Is there a good restaurant near {STREET_ADDRESS}?
Where is the nearest cash machine to {STREET_ADDRESS}, {GPE}?
Please send the new card to {STREET_ADDRESS}, {GPE}, {ZIP_CODE}.
Please change my address to {STREET_ADDRESS}, {GPE} {ZIP_CODE}, {GPE}
I have moved. My new address is {STREET_ADDRESS}, {GPE}.
Deliver it to {PERSON}, {STREET_ADDRESS}, {GPE}, please.
Our office is at {STREET_ADDRESS} in {GPE}.
The accident happened on the corner of {STREET_NAME} and {STREET_NAME}.
I live at {STREET_ADDRESS}.
he lives on {STREET_NAME} with his wife {GIVEN}
We meet at {STREET_ADDRESS}, {GPE}, at noon on {DATE_TIME}.
{ORGANIZATION}, {STREET_ADDRESS}, {ZIP_CODE} {GPE}
{ORGANIZATION}\\n{STREET_ADDRESS}\\n{GPE} {ZIP_CODE}
I work as an engineer at {ORGANIZATION}.
{ORGANIZATION} was founded in {DATE_TIME} by {PERSON} and {PERSON}.
{ORGANIZATION} announced that {PERSON} will be the new director.
Have you heard of {ORGANIZATION}? They make electric cars.
Shares of {ORGANIZATION} fell by 4% after {ORGANIZATION} reported losses.
I have an appointment with {TITLE} {PERSON} at the {ORGANIZATION}.
{TITLE} {PERSON} prescribed the medicine on {DATE_TIME}.
My doctor, {TITLE} {FAMILY}, says that I should rest.
Is {TITLE} {FAMILY} in the office today?
Please book a room for {PERSON} from {DATE_TIME} to {DATE_TIME}.
Write an email to my boss {PERSON} and ask for a day off on {DATE_TIME}.
Translate this into French: {PERSON} lost her passport in {GPE}.
Summarise the case of {PERSON} against {ORGANIZATION}.
Write a birthday poem for my daughter {GIVEN}, who turns {AGE} on {DATE_TIME}.
My son {GIVEN} is {AGE} and has had a fever since {DATE_TIME}.
The patient is a {AGE}-year-old woman from {GPE} with chest pain.
A {AGE} year old man with diabetes came to the clinic.
I will be {AGE} next month.
She turned {AGE} last week.
my mother is {AGE} and takes three pills a day
He is {AGE} years old and weighs 80 kg.
My husband {GIVEN} and I want to open a joint account.
My wife {PERSON} should be able to use the account too.
Can you add {PERSON} as a beneficiary?
Why was {PERSON} rejected for the loan?
Can you tell me who {PERSON} is?
Have you read the new book by {PERSON}?
Who directed the film with {PERSON} and {PERSON}?
The film was directed by {PERSON} and stars {FAMILY} as a {NRP} spy.
{FAMILY}, {FAMILY} and {FAMILY} voted against it.
Call {GIVEN} and tell her that {GIVEN} is late.
Ask {GIVEN} whether the flat on {STREET_NAME} is free.
{GIVEN} and {GIVEN} got married in {GPE} on {DATE_TIME}.
{GIVEN}'s birthday is on {DATE_TIME}.
{PERSON}'s flat is at {STREET_ADDRESS}.
Everyone calls me {GIVEN}, but my passport says {PERSON}.
The name on the card should be {PERSON}, not {PERSON}.
{PERSON} ({DATE_TIME} - {DATE_TIME}) was a {NRP} painter.
{GIVEN} is a {NRP} student at {ORGANIZATION}.
Most {NRP} people that I know like football.
Is {NRP} food popular in {GPE}?
I speak {NRP} and a little {NRP}.
My phone number is {PHONE_NUMBER}.
You can reach me at {PHONE_NUMBER} until Friday.
They do not pick up at {PHONE_NUMBER}
Please call {PHONE_NUMBER} and ask for {GIVEN}.
My registered number is {PHONE_NUMBER}, please update it to {PHONE_NUMBER}.
Stop sending messages to {PHONE_NUMBER}!
Tel: {PHONE_NUMBER}, Fax: {PHONE_NUMBER}
My card {CREDIT_CARD} was stolen yesterday.
I lost my credit card number {CREDIT_CARD}, please block it.
What is the limit of the card {CREDIT_CARD}?
Please cancel {CREDIT_CARD} and send a new card to {STREET_ADDRESS}.
I cannot pay with {CREDIT_CARD} in {GPE}.
charge it to {CREDIT_CARD}
My driver's license is {US_DRIVER_LICENSE}.
driving licence number {US_DRIVER_LICENSE}
We have not met since {DATE_TIME}.
On {DATE_TIME} the bank charged me twice.
The lease ends on {DATE_TIME}.
Since {DATE_TIME} I cannot log in.
It was the best concert of {DATE_TIME}.
What happened on {DATE_TIME} in {GPE}?
See you on {DATE_TIME}!
The train from {GPE} leaves at 9:30.
My zip code is {ZIP_CODE}.
I live in {GPE} {ZIP_CODE}
Which towns have the postal code {ZIP_CODE}?
I am looking for a job in {GPE} {ZIP_CODE}.
An experienced manager with 12 years at {ORGANIZATION} in {GPE}.
Bot: What is your name?\\nUser: {PERSON}
Bot: Where do you live?\\nUser: {STREET_ADDRESS}
Agent: Which city?\\nCustomer: {GPE}
User: my name is {GIVEN}
Q: Who is the owner? A: {PERSON}
{GPE} is the largest city of the country.
{GPE} was beautiful, but {GPE} was too hot.
The university of {GPE} is looking for a professor.
The {GPE} airport is closed because of snow.
The {ORGANIZATION} in {GPE} accepts new patients.
The {ORGANIZATION} website says that delivery is free.
An {NRP} company bought {ORGANIZATION} for two million dollars.
I bought it from {ORGANIZATION} but {ORGANIZATION} never sent it.
The president of {ORGANIZATION}, {TITLE} {PERSON}, resigned on {DATE_TIME}.
We listened to {ORGANIZATION} all night; {PERSON} plays the guitar.
Did {GIVEN} invite {PERSON} to the party at {STREET_ADDRESS}?
Ship to: {PERSON}, {STREET_ADDRESS}, {GPE}
{STREET_ADDRESS}, {GPE}, {GPE}
{STREET_ADDRESS}
{PERSON}
{GPE}
{GIVEN} {GIVEN} and {PERSON} won the first prize.
The letter went to {STREET_ADDRESS}\\n{GPE}\\n{GPE} {ZIP_CODE} and came back.
His full name is {PERSON} and he comes from {GPE}, {GPE}.
Police in {GPE} arrested {PERSON}, {AGE}, on {DATE_TIME}.
The suspect, {PERSON}, lives in {GPE} and works for {ORGANIZATION}.
The {NRP} minister {FAMILY} said on {DATE_TIME} that {GPE} will help.
Contact {PERSON} for details.
Speaking of {FAMILY}, where is he now?
I do not trust {GIVEN}.
Tell me about {PERSON}.
What did {PERSON} do before {DATE_TIME}?
The painter {PERSON} and the writer {PERSON} met in {GPE}.
{TITLE} {FAMILY} teaches history at {ORGANIZATION}.
Good morning {TITLE} {PERSON}, how can I help you?
I am writing on behalf of {TITLE} {FAMILY}.
The owner of the account is {PERSON}, born on {DATE_TIME}.
Transfer 200 euros to {PERSON} in {GPE}.
How do I send money to {PERSON} at {ORGANIZATION}?
My landlord {PERSON} wants the rent for {DATE_TIME}.
The flight to {GPE} with {ORGANIZATION} was cancelled on {DATE_TIME}.
Visit us: {STREET_ADDRESS}, {ZIP_CODE} {GPE}, {GPE}
>{PERSON}\\n>{STREET_ADDRESS}\\n>{GPE}\\n>{GPE} {ZIP_CODE}
{GIVEN}: Where have you been?\\n{GIVEN}: In {GPE}, with {GIVEN}.
{GIVEN}: I lost my keys.\\n{GIVEN}: Look under the bed, {GIVEN}!
{GIVEN} stays at {STREET_ADDRESS}.
{GIVEN} moved to {GPE} because she likes the sea.
{GIVEN} has worked at {ORGANIZATION} since {DATE_TIME}.
{GIVEN} comes from {GPE}, but his parents are {NRP}.
{GIVEN} joined {ORGANIZATION} after school.
{ORGANIZATION} is a software company in {GPE}.
{ORGANIZATION} employs a hundred people and is led by {PERSON}.
{ORGANIZATION} has opened a new shop at {STREET_ADDRESS}.
{ORGANIZATION} drummer {PERSON} talks about the new {ORGANIZATION} contract.
The headquarters of {ORGANIZATION} are at {STREET_ADDRESS}
The {ORGANIZATION} shop on {STREET_NAME} is closed.
After years with {ORGANIZATION} she went to {ORGANIZATION} in {GPE}, later {ORGANIZATION}.
I'm {GIVEN}, {AGE} y/o, born in {GPE}.
i'm {AGE} and my sister is {AGE}
We are {AGE} and {AGE} years old.
Yesterday I celebrated my {AGE}th birthday.
Turning {AGE} was hard for {GIVEN}.
patient, {AGE}, male, has a cough
Is it true that {NRP}s drink a lot of tea?
{NRP} investors bought a house in {GPE}.
A {NRP} court sent {PERSON} to prison.
My neighbour is {NRP}.
{TITLE} {FAMILY}, please take a seat.
{TITLE} {FAMILY}'s secretary has cancelled the appointment.
Thank you {TITLE} {FAMILY}!
It belongs to {TITLE} {PERSON} of {GPE}.
make the cheque out to {TITLE} {PERSON}
Occupation: nurse\\nName: {PERSON}\\nPhone:\\n{PHONE_NUMBER}\\n\\nAddress:\\n{STREET_ADDRESS}
{PERSON}\\n\\nAccountant\\n\\nTel:\\n{PHONE_NUMBER}\\n\\nE-mail: see below
Send one to {STREET_ADDRESS} and one to {STREET_ADDRESS}, please.
I have two addresses: {STREET_ADDRESS}, and {STREET_ADDRESS}.
{GPE} is in the south of {GPE}.
Northern {GPE} is cold.
{GPE} was where the {NRP} writer {PERSON} died.
"""

PLAIN = """
Can I use my Visa card at the ATM?
How do I reset my password?
What are the opening hours of the bank?
Why does my TV show a blue screen?
I want to cancel my subscription because it is too expensive.
The quick test took 15 minutes and cost 30 dollars.
Please explain how a heat pump works.
Write a short story about a dragon who is afraid of the dark.
What is the difference between RAM and a hard disk?
I cannot open the PDF that you sent me.
The price went up by 12% in one year.
Do I have to pay a fee when I withdraw money abroad?
My head hurts and I feel dizzy. What should I do?
Take 2 tablets every 8 hours with food.
OK, thank you very much! That helps a lot.
Unfortunately the package has not arrived yet.
However, the second part of the plan was never finished.
Is it possible to increase my limit to 5000 for 3 days?
Summer is my favourite season; Winter is too cold.
The HTML page has 404 errors and the API returns 500.
What does Error 1045 mean?
Give me five ideas for dinner with rice and beans.
We need 250 chairs, 40 tables and a stage.
Once upon a time there was a king who had three sons.
The Internet was slow, so we played cards.
Translate "good morning" for me, please.
Nothing works. Nobody answers. Everything is broken.
Always check the label before you wash it.
Did the doctor say when you can go home?
Mother and Father are coming for dinner, and Grandma is bringing cake.
How many planets are there? Eight, since one was removed.
Congratulations on your new job!
Sorry, I don't understand. Could you repeat that?
Turn left at the church and walk for 10 minutes.
The lawyer said that the contract is valid for 2 years.
Which phone has the best camera for less than 400 dollars?
Rewrite this paragraph so that it sounds friendly.
A good friend is someone who listens.
The Moon is smaller than the Earth.
Her blood pressure was 140 over 90.
Item 4711 is out of stock; item 4712 ships in 2 weeks.
Just do it. Never give up! Keep calm and carry on.
I've been waiting since the morning and they still haven't called.
Let's play chess. Your move: e4.
If it rains, take the bus; otherwise, walk.
Where can I buy cheap tickets for the concert?
Version 2.0 fixes 30 bugs and adds dark mode.
Yes, that's right. No, it's not mine.
The final score was 3 to 1.
Add 200 g of flour, 2 eggs and a cup of milk.
Everybody knows that cats sleep all day.
Could you lend me your bike for the weekend?
Money isn't everything, but it helps.
I'd like to know whether my transaction went through.
Has the refund been processed? It has been 10 days.
This is the third time I am asking!
Show me how to sort a list in Python.
Why is the sky blue and the grass green?
Energetic seller with 8 years of experience looks for a new challenge.
The Golden Gate of the old castle is closed on holidays.
"The Long Road Home" is the best song on the album.
Please Note: All Sales Are Final And Cannot Be Returned.
IMPORTANT: DO NOT REPLY TO THIS MESSAGE.
The Ministry of Silly Walks is a famous sketch.
Hobbits and dragons live in tales, not in prison.
On the beach we saw crabs, felines and a few hungry dogs.
Labor Day is a holiday in the autumn.
The Civil Rights Act forbids discrimination on grounds of sex, colour and religion.
She gave the top 10 list to the weekly magazine, at #3 and #12.
Words like Courage or Patience are written with a capital here.
E-mail is faster than the post. The E-book was free.
C'mon, let's go downtown! Cool, I'm in.
Laboratory technician wanted: biology, chemistry, leasing, retail.
The bot, the agent and the robot do not sleep.
"""
