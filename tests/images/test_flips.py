"""Class names that distinguish left and right forbid flips; similar names do not."""

import pytest

from transfer.images.flips import flip_problem, flips_are_safe

# Each string lists the classes of a data set, with commas.
# fmt: off
MIRRORED = [
    "left,right", "turn_left,turn_right,straight", "digit_0,digit_1", "east,west", "ne,nw", "N,NE,E,SE,S,SW,W,NW",
    "north,north_east,north_west", "northeast,northwest", "clockwise,counterclockwise", "clockwise,anti-clockwise",
    "CW,CCW", "rotate_cw,rotate_ccw,none", "turnLeft,turnRight", "TurnLeft,TurnRight", "links,rechts",
    "gauche,droite", "izquierda,derecha", "sinistra,destra", "esquerda,direita", "port,starboard", "hand_L,hand_R",
    "L,R,none", "OS,OD", "eye_os,eye_od", "lh,rh", "LH,RH", "forehand,backhand", "b,d", "p,q,other", "zero,one,two",
    "0,1,2,3", "A_upper,B_upper,a_lower", "letter_a,letter_b", "0 - zero,1 - one", "A,B,space,del,nothing",
    "keep_left,keep_right", "Dangerous curve to the right,Dangerous curve to the left,Stop", "left,straight",
    "Turn left,Go straight", "turn right ahead,stop", "i,ii,iii,iv", "I,V,X", "left_hand,right_hand",
    "LeftEye,RightEye,nose", "01_left,02_right", "0 - left,1 - right", "leftarrow,rightarrow", "arrow-left,arrow-up",
    "swipeleft,swiperight", "up-left,up-right", "upleft,upright", "левый,правый", "налево,направо", "左,右",
    "左转,右转,直行", "왼쪽,오른쪽", "שמאל,ימין", "يسار,يمين", "ซ้าย,ขวา", "बाएँ,दाएँ", "kiri,kanan", "trái,phải",
    "vänster,höger", "venstre,højre", "lewo,prawo", "vlevo,vpravo", "sol,sağ", "←,→", "⬅️,➡️", "👈,👉", "(,)", "<,>",
    "/,\\", "lt,gt", "less_than,greater_than", "character_1_ka,character_2_kha,digit_0", "alpha,beta,gamma",
    "uno,dos,tres", "eins,zwei,drei", "あ,い,う", "à,é", "Left Lung,Right Lung", "LV,RV", "L-CC,R-CC,L-MLO,R-MLO",
    "LCC,RCC", "left turn,right turn,u turn", "right-facing,left-facing", "facing_east,facing_north",
    "eastbound,westbound", "leftward,rightward", "lefthanded,righthanded", "left_to_right,right_to_left",
    "mirrored,normal", "flipped,original", "rot90,rot270,rot0", "0,90,180,270", "rotate_90,rotate_270", "L1,R1",
    "rightturn,leftturn", "turn left sign,turn right sign", "left eye looking right,right eye looking left",
    "im Uhrzeigersinn,gegen den Uhrzeigersinn", "horario,antihorario", "horaire,antihoraire", "babord,tribord",
    "backbord,steuerbord", "levocardia,dextrocardia", "sinistral,dextral", "Hand_gauche,Hand_droite",
    "oeil_droit,oeil_gauche", "ojo_izquierdo,ojo_derecho", "oog_links,oog_rechts", "linke_hand,rechte_hand",
    "LEFT,RIGHT", "Left,Right,Center", "keep left,keep right,ahead only", "no_left_turn,no_right_turn",
    "one,two,three,four,five", "thumbs_left,thumbs_right", "slight_left,sharp_left,straight", "0_upper,b",
    "A,B,C,hello", "number_1,number_2", "class_left,class_right", "left.png,right.png",
    "head_left,head_right,head_center", "gaze left,gaze right", "right,left,wrong", "driver_left,driver_right",
    "car_facing_left,car_facing_right", "texting_left,texting_right,safe_driving", "texting - right,texting - left",
    "talking on the phone - right,talking on the phone - left,safe driving", "lhand,rhand", "VII,VIII,IX",
    "waxing crescent,waning crescent,full", "First_Quarter,Last_Quarter", "S-twist,Z-twist", "swipe_ltr,swipe_rtl",
    "3 oclock,9 oclock", "driver side,passenger side", "sola_don,saga_don", "balra,jobbra", "ліворуч,праворуч",
    "hidari,migi", "چپ,راست",
    "est,ouest", "este,oeste", "восток,запад", "东,西", "nordost,nordwest",
]
SAFE = [
    "right_whale,blue_whale", "leftovers,fresh", "west_highland_terrier,pug", "northwestern crow,raven",
    "copyright,trademark", "bright,dark", "eastern bluebird,robin", "ants,bees", "a,ant", "1_cat,2_dog",
    "class_0,class_1", "grade_0,grade_1", "upright,lying", "airport,stadium", "port,coast",
    "Western_Gull,Ring_billed_Gull", "Eastern_Towhee,Western_Meadowlark", "Eastern_Meadowlark,Western_Meadowlark",
    "right,wrong", "yeast,bacteria", "east_siberian_laika,husky", "beast,feast", "lighthouse,lamp", "rice,lice",
    "lock,rock", "0-2,3-9,10-19,20-29", "20-29,30-39", "malignant,benign", "T-shirt/top,Trouser,Pullover,Dress,Coat",
    "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck", "daisy,dandelion,rose,sunflower,tulip",
    "no_tumor,glioma", "NORMAL,PNEUMONIA", "COVID,Viral Pneumonia,Normal",
    "with_mask,without_mask,mask_weared_incorrect", "open,closed", "front,back", "up,down", "north,south", "yes,no",
    "sol,luna", "destroyer,frigate", "kiwi,lime", "direct,indirect", "sedan,suv", "class_90,class_270",
    "mel,nv,bcc,akiec,bkl,vasc,df", "cup_a,cup_plate", "type_1,type_2", "wrightia,oak", "cleft_lip,normal",
    "straight,curly", "six_pack,none", "left_company,stayed", "theft,no theft", "Wright,Smith", "east_asian,african",
    "West Indian manatee,dugong", "santa,fe", "le_corbusier,gaudi", "2,cat,dog", "K-Left Behind,foo",
    "handwritten,printed", "one_dollar,two_dollars", "a_cat,a_dog", "ace,king,queen", "dextrose,fructose", "sag,wag",
    "first quarter,second quarter", "offside,onside", "3_cat,9_cat", "driver,passenger",
    "destination,origin", "link_a,cat", "linkedin,facebook", "links page,home", "weld,crack", "la_paz,bogota",
    "re_entry,launch", "westie,pug", "northwest_crow,raven", "the_right_stuff,et", "port_wine_stain,nevus",
    "cat (domestic),dog (domestic)", "west nile virus,dengue", "bald_eagle,golden_eagle",
]
# fmt: on


@pytest.mark.parametrize("names", MIRRORED)
def test_classes_that_flips_would_swap_forbid_flips(names):
    assert flip_problem(names.split(",")) and not flips_are_safe(names.split(","))


@pytest.mark.parametrize("names", SAFE)
def test_names_that_only_contain_such_words_allow_flips(names):
    assert flip_problem(names.split(",")) == "" and flips_are_safe(names.split(","))


def test_the_classes_of_the_bundled_images_allow_flips():
    from transfer.images.datasets import load_data

    assert flips_are_safe(load_data("emoji").class_names)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["stop", "turn_left", "turn_right"], "the classes 'turn_left' and 'turn_right' would swap"),
        (["straight", "turn_left"], "the class 'turn_left' is a direction"),
        (["0 - zero", "1 - one"], "the classes are digits or letters"),
    ],
)
def test_the_reason_is_stated(names, problem):
    assert flip_problem(names) == problem
